//! A database that speaks TLS, and certificates for it.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use url::Url;

use super::{Folder, TestDatabase};

/// Makes two CAs, `ca` and `other`, and of `ca` certificates for `localhost` and for `elsewhere.test`: a `.pem` and a
/// `.key` each, in the folder.
pub(crate) fn make_certificates(folder: &Folder) {
    let script = r#"set -e
        key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
        for ca in ca other; do
            openssl req -x509 $key -keyout $ca.key -out $ca.pem -days 2 -subj "/CN=$ca"
        done
        for name in localhost elsewhere.test; do
            echo "subjectAltName = DNS:$name" > extensions
            openssl req $key -keyout $name.key -subj "/CN=$name" |
                openssl x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out $name.pem
        done"#;
    let made = Command::new("sh")
        .args(["-c", script])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// A server before a database, that speaks TLS with it; `localhost` is its name.
pub(crate) struct TlsDatabase {
    url: Url,
    acceptor: Arc<Mutex<TlsAcceptor>>,
    open: Arc<Mutex<JoinSet<()>>>,
    _listener: JoinSet<()>,
}

impl TlsDatabase {
    /// Stands before a database, with the certificate `{certificate}.pem` of the folder.
    pub(crate) async fn before(
        database: &TestDatabase,
        folder: &Folder,
        certificate: &str,
    ) -> Self {
        let mut url = Url::parse(&database.url).unwrap();
        let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        url.set_host(Some("localhost")).unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port()))
            .unwrap();
        let acceptor = Arc::new(Mutex::new(acceptor(folder.path(), certificate)));
        let open = Arc::new(Mutex::new(JoinSet::new()));
        let mut accepting = JoinSet::new();
        accepting.spawn({
            let (acceptor, open) = (Arc::clone(&acceptor), Arc::clone(&open));
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let acceptor = acceptor.lock().unwrap().clone();
                    let server = server.clone();
                    open.lock().unwrap().spawn(async move {
                        // Ends as the connection does.
                        let _ = forward(client, acceptor, &server).await;
                    });
                }
            }
        });
        Self {
            url,
            acceptor,
            open,
            _listener: accepting,
        }
    }

    /// Its URL, with these parameters.
    pub(crate) fn url(&self, parameters: &str) -> String {
        let mut url = self.url.clone();
        url.set_query(Some(parameters));
        url.into()
    }

    /// Ends all connections; new ones are met with another certificate.
    pub(crate) fn change_certificate(&self, folder: &Folder, certificate: &str) {
        *self.acceptor.lock().unwrap() = acceptor(folder.path(), certificate);
        self.open.lock().unwrap().abort_all();
    }
}

fn acceptor(folder: &Path, certificate: &str) -> TlsAcceptor {
    let file = |extension| folder.join(format!("{certificate}.{extension}"));
    let chain = CertificateDer::pem_file_iter(file("pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.map(Result::unwrap).collect(), key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// TLS on one side, plain text on the other. Postgres is asked for TLS before it begins.
async fn forward(
    mut client: TcpStream,
    acceptor: TlsAcceptor,
    server: &str,
) -> std::io::Result<()> {
    client.read_exact(&mut [0; 8]).await?;
    client.write_all(b"S").await?;
    let mut client = acceptor.accept(client).await?;
    let mut server = TcpStream::connect(server).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
