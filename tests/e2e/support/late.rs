//! A database that isn't there yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use url::Url;

use super::TestDatabase;

/// A database server that hangs up on the first connections, as one does that is still starting, and answers the
/// others.
pub(crate) struct LateDatabase {
    pub(crate) url: String,
    pub(crate) connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl LateDatabase {
    /// Stands before a database, and hangs up so many times.
    pub(crate) async fn before(database: &TestDatabase, hang_up: usize) -> Self {
        let mut url = Url::parse(&database.url).unwrap();
        let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(address.port())).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let count = Arc::clone(&connections);
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                if count.fetch_add(1, Ordering::Relaxed) < hang_up {
                    continue;
                }
                let mut server = TcpStream::connect(&server).await.unwrap();
                open.spawn(async move {
                    // Ends as the connection does.
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self {
            url: url.into(),
            connections,
            _tasks: tasks,
        }
    }
}
