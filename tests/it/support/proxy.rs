//! A TCP proxy between the service and Postgres: the network, which can be lost on command.

use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::TestDatabase;

/// The proxy; it is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    state: watch::Sender<State>,
    _accepting: JoinSet<()>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    up: bool,
    /// How the network was lost last.
    lost: Lost,
    /// Counts the losses: a connection from before one stays lost when the network is back.
    losses: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// Connections end at once.
    Cut,
    /// Nothing passes, and nobody is told: the peer has vanished.
    BlackHole,
}

impl Proxy {
    /// Puts a proxy before a database, for the service. The test's own pool goes past it.
    pub(crate) async fn before(mut database: TestDatabase) -> (Self, Arc<TestDatabase>) {
        let (proxy, options) = Self::start(&database.options).await;
        database.options = options;
        (proxy, Arc::new(database))
    }

    /// Starts a proxy before a server; says how to connect through it.
    pub(crate) async fn start(server: &PgConnectOptions) -> (Self, PgConnectOptions) {
        let upstream = (server.get_host().to_owned(), server.get_port());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, seen) = watch::channel(State {
            up: true,
            lost: Lost::Cut,
            losses: 0,
        });
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, upstream.clone(), seen.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        let proxy = Self {
            state,
            _accepting: accepting,
        };
        (proxy, server.clone().host("127.0.0.1").port(port))
    }

    /// Ends every connection, and each new one.
    pub(crate) fn cut(&self) {
        self.lose(Lost::Cut);
    }

    /// Swallows what is sent on every connection, for good, and on each new one.
    pub(crate) fn black_hole(&self) {
        self.lose(Lost::BlackHole);
    }

    /// Lets new connections through.
    pub(crate) fn restore(&self) {
        self.state.send_modify(|state| state.up = true);
    }

    fn lose(&self, lost: Lost) {
        self.state.send_modify(|state| {
            state.up = false;
            state.lost = lost;
            state.losses += 1;
        });
    }
}

/// Passes a connection on until it ends or the network is lost.
async fn pass(mut client: TcpStream, upstream: (String, u16), mut seen: watch::Receiver<State>) {
    let State {
        up,
        mut lost,
        losses,
    } = *seen.borrow_and_update();
    // Kept here, so that the service's side stays open when the passing ends.
    let mut server;
    if up {
        server = TcpStream::connect(upstream).await.unwrap();
        tokio::select! {
            // The loss first: nothing passes after it.
            biased;
            state = seen.wait_for(|state| state.losses != losses) => {
                let Ok(state) = state else { return };
                lost = state.lost;
            }
            _ = copy_bidirectional(&mut client, &mut server) => return,
        }
    }
    if lost == Lost::BlackHole {
        std::future::pending::<()>().await;
    }
}
