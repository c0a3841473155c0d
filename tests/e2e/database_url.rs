//! `DATABASE_URL`: what is connected to, how, and what is said about it (R35).

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinSet;
use url::Url;

use crate::support::tls::{TlsDatabase, make_certificates};
use crate::support::{Folder, SECRET, Service, TestDatabase, eventually, run};

/// The value of every parameter here that isn't known: nothing that is printed may hold it.
const PRIVATE: &str = "hunter2";

/// What is left of a test database's URL.
struct Parts {
    server: String,
    login: String,
    name: String,
}

impl Parts {
    fn of(database: &TestDatabase) -> Self {
        let url = Url::parse(&database.url).unwrap();
        Self {
            server: format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5432)),
            login: format!("{}:{}", url.username(), url.password().unwrap_or_default()),
            name: url.path().trim_start_matches('/').to_owned(),
        }
    }
}

/// R35: an IPv6 literal is an address, in the URL and in what is said.
#[tokio::test]
async fn an_ipv6_address_is_connected_to() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let Parts {
        server,
        login,
        name,
    } = Parts::of(&database);
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut forwarding = JoinSet::new();
    forwarding.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(&server).await.unwrap();
            connections.spawn(async move {
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let url = format!("postgresql://{login}@{address}/{name}");
    let migrated = run(&folder, &[("DATABASE_URL", url)], &["migrate"])
        .await
        .assert(0);
    let place = format!("into {name} at {address}");
    assert!(migrated.stdout.contains(&place), "{migrated:?}");
}

/// R35: a Unix socket is called one.
#[tokio::test]
async fn a_unix_socket_is_connected_to() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let Parts {
        server,
        login,
        name,
    } = Parts::of(&database);
    let directory = folder.path().to_str().unwrap();
    let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
    let mut forwarding = JoinSet::new();
    forwarding.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(&server).await.unwrap();
            connections.spawn(async move {
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let escaped = directory.replace('/', "%2F");
    for (url, said) in [
        (
            format!("postgres://{login}@/{name}?host={directory}"),
            format!(
                " into {name} at the socket directory {directory}\ncreated public.organization_metadata in {name} at the socket directory {directory}\n"
            ),
        ),
        (
            format!("postgres://{login}@{escaped}/{name}"),
            format!("the schema of {name} at the socket directory {directory} is current\n"),
        ),
    ] {
        let migrated = run(&folder, &[("DATABASE_URL", url)], &["migrate"])
            .await
            .assert(0);
        assert!(migrated.stdout.ends_with(&said), "{migrated:?}");
    }
}

/// R35: an unknown parameter is named once, and its value appears nowhere, at any level of the log.
#[tokio::test]
async fn an_unknown_parameter_is_named() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let mut url = Url::parse(&database.url).unwrap();
    url.query_pairs_mut()
        .append_pair("pgbouncer", PRIVATE)
        .append_pair("schema", "public")
        .append_pair("connect_timeout", PRIVATE);
    let variables = [("DATABASE_URL", url.as_str()), ("LOG_LEVEL", "trace")];
    let migrated = run(&folder, &variables, &["migrate"]).await.assert(0);
    for name in ["pgbouncer", "connect_timeout"] {
        let said = format!("DATABASE_URL: unknown parameter \\\"{name}\\\" is ignored");
        assert_eq!(migrated.stderr.matches(&said).count(), 1, "{migrated:?}");
    }
    assert!(!migrated.stderr.contains("schema\\\" is ignored"));
    for printed in [&migrated.stdout, &migrated.stderr] {
        assert!(!printed.contains(PRIVATE), "{printed}");
    }
}

/// R35: what is wrong with a URL is said, of a password not even a piece.
#[tokio::test]
async fn a_wrong_url_is_refused_by_its_fault() {
    let folder = Folder::new();
    for (url, problem) in [
        ("mysql://me:hunter2@db/app", "not mysql://"),
        ("https://db.internal/app", "not https://"),
        (
            "postgres://me:Tr0ub4dor&3@hunter2/hunter2#9@db/app",
            "must be percent-encoded",
        ),
        ("postgres://me:hunter2@a,b/app", "several hosts"),
        (
            "postgres://me:hunter2@db/app?sslmode=no-verify",
            "sslmode: expected disable, allow, prefer, require, verify-ca or verify-full",
        ),
        (
            "postgres://db/app?sslaccept=hunter2",
            "sslaccept is unknown",
        ),
    ] {
        for command in ["serve", "migrate"] {
            let variables = [("DATABASE_URL", url), ("WORKOS_WEBHOOK_SECRET", SECRET)];
            let refused = run(&folder, &variables, &[command]).await.assert(2);
            let line = refused.error_line();
            assert!(line.starts_with("workos-sync: DATABASE_URL: "), "{line}");
            assert!(line.contains(problem), "{line}");
            assert!(!line.contains(PRIVATE), "{line}");
        }
    }
}

/// R35: TLS as libpq has it: what the CA has signed for this name is trusted, and the client may have a certificate too.
#[tokio::test]
async fn a_server_with_a_certificate_is_trusted() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    make_certificates(&folder);
    let server = TlsDatabase::before(&database, &folder, "localhost").await;
    let elsewhere = TlsDatabase::before(&database, &folder, "elsewhere.test").await;
    for url in [
        server.url("sslmode=verify-full&sslrootcert=ca.pem"),
        server.url(
            "sslmode=verify-full&sslrootcert=ca.pem&sslcert=localhost.pem&sslkey=localhost.key",
        ),
        server.url("sslmode=require&sslrootcert=ca.pem"),
        server.url("sslmode=require"),
        elsewhere.url("sslmode=verify-ca&sslrootcert=ca.pem"),
    ] {
        run(&folder, &[("DATABASE_URL", url)], &["migrate"])
            .await
            .assert(0);
    }
}

/// R35: a mistake that time doesn't cure ends the start at once, with its reason in one line.
#[tokio::test]
async fn a_mistake_ends_the_start_at_once() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    make_certificates(&folder);
    folder.write("text.pem", "no certificate");
    let server = TlsDatabase::before(&database, &folder, "localhost").await;
    let elsewhere = TlsDatabase::before(&database, &folder, "elsewhere.test").await;
    let ca = TlsDatabase::before(&database, &folder, "ca").await;
    let mut plain = Url::parse(&database.url).unwrap();
    plain.set_query(Some("sslmode=require"));
    let mut nobody = Url::parse(&database.url).unwrap();
    nobody.set_username("nobody_of_that_name").unwrap();
    for (url, problem) in [
        (
            server.url("sslmode=verify-full&sslrootcert=other.pem"),
            "the server's certificate is signed by an unknown CA",
        ),
        (
            server.url("sslmode=verify-ca"),
            "the server's certificate is signed by an unknown CA",
        ),
        (
            server.url("sslmode=require&sslrootcert=other.pem"),
            "the server's certificate is signed by an unknown CA",
        ),
        (
            elsewhere.url("sslmode=verify-full&sslrootcert=ca.pem"),
            "not valid for name \"localhost\"",
        ),
        (
            ca.url("sslmode=verify-ca&sslrootcert=ca.pem"),
            "the server's certificate is a CA: ",
        ),
        (
            server.url("sslmode=verify-ca&sslrootcert=missing.pem"),
            "sslrootcert: the file can't be read: No such file",
        ),
        (
            server.url("sslmode=verify-ca&sslrootcert=text.pem"),
            "sslrootcert: the file holds no certificate",
        ),
        (
            server.url("sslmode=require&sslcert=ca.pem"),
            "key and certs must be given together",
        ),
        (plain.into(), "server does not support TLS"),
        (nobody.into(), "nobody_of_that_name"),
    ] {
        for command in ["serve", "migrate"] {
            let variables = [
                ("DATABASE_URL", url.as_str()),
                ("WORKOS_WEBHOOK_SECRET", SECRET),
                ("LISTEN_ADDR", "127.0.0.1:0"),
            ];
            let refused = run(&folder, &variables, &[command]).await.assert(1);
            // One line: it wasn't tried again.
            let line = refused.error_line();
            assert!(line.starts_with("workos-sync: DATABASE_URL: "), "{line}");
            assert!(line.contains(problem), "{line}");
        }
    }
}

/// R35: the same mistake, made while it serves, is an outage with that reason, and heals.
#[tokio::test]
async fn a_mistake_is_an_outage_while_serving() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    make_certificates(&folder);
    let server = TlsDatabase::before(&database, &folder, "localhost").await;
    let url = server.url("sslmode=verify-full&sslrootcert=ca.pem");
    let variables = [
        ("DATABASE_URL", url.as_str()),
        ("WORKOS_WEBHOOK_SECRET", SECRET),
    ];
    let service = Service::start(&folder, &variables).await;
    service.ready().await;

    server.change_certificate(&folder, "other");
    eventually("it isn't ready", async || {
        service.get("/readyz").await == Some(503)
    })
    .await;
    let reason = "the server's certificate is ";
    assert!(service.log().contains(reason), "{}", service.log());

    server.change_certificate(&folder, "localhost");
    eventually("it is ready again", async || {
        service.get("/readyz").await == Some(200)
    })
    .await;
}
