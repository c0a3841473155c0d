//! The Postgres server that the tests run on: the one that `DATABASE_URL` names, else a throw-away one, started
//! by the same code as the service's private one.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use secrecy::ExposeSecret;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use workos_sync::postgres::embedded::{Embedded, EmbeddedOptions};

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
    let folder = tempfile::Builder::new()
        .prefix("workos-sync-test-")
        .tempdir()
        .unwrap()
        .keep();
    let options = EmbeddedOptions {
        data_dir: folder.clone(),
        bin_dir: std::env::var_os("PG_BIN_DIR").map(PathBuf::from),
        durable: false,
    };
    let server = Embedded::start(&options, &CancellationToken::new())
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let url = server.url().expose_secret().to_owned();
    end_with_this_process(&folder);
    // The watchdog ends it: a test binary has no last line to do it in.
    std::mem::forget(server);
    url
}

/// A shell that waits for this process to end, however it does, then stops the server and removes its folders.
/// It waits on a pipe that only this process holds.
fn end_with_this_process(folder: &std::path::Path) {
    let pgdata = std::fs::canonicalize(folder.join("postgres")).unwrap();
    let pid = std::fs::read_to_string(pgdata.join("postmaster.pid")).unwrap();
    let pid = pid.lines().next().unwrap();
    let script = r#"trap '' INT TERM HUP
        cat >/dev/null
        kill -QUIT "$1"
        while kill -0 "$1" 2>/dev/null; do sleep 0.1; done
        rm -rf "$2" "$3""#;
    let watchdog = Command::new("sh")
        .args(["-c", script, "sh", pid])
        .args([folder, &pgdata])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::mem::forget(watchdog);
}
