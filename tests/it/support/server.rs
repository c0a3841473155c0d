//! The Postgres server that the tests run on: the one that `DATABASE_URL` names, else a throw-away one.

use private_postgres::{Options, Temporary};
use secrecy::ExposeSecret;
use tokio::sync::OnceCell;

/// A server, and whether its databases outlive the tests.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) lasting: bool,
}

static SERVER: OnceCell<Server> = OnceCell::const_new();

/// The server; started by the test that comes first.
pub(crate) async fn server() -> &'static Server {
    SERVER
        .get_or_init(|| async {
            match std::env::var("DATABASE_URL") {
                Ok(url) if !url.is_empty() => Server { url, lasting: true },
                _ => Server {
                    url: throw_away().await,
                    lasting: false,
                },
            }
        })
        .await
}

async fn throw_away() -> String {
    let options = Options {
        bin_dir: std::env::var_os("PG_BIN_DIR").map(Into::into),
        durable: false,
        name: "workos_sync",
        ..Options::default()
    };
    let server = Temporary::start(&std::env::temp_dir(), &options)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let url = server.url().expose_secret().to_owned();
    // Its watchdog ends it: a test binary has no last line to do it in.
    std::mem::forget(server);
    url
}
