//! The accept loop, on hyper: `axum::serve` has no header read timeout and no connection limit.
//!
//! What hyper answers by itself, before there is a request for the router, and so without problem+json: an
//! empty 400 to what is no HTTP/1, and an empty 431 to a head that is too large or has more than 100 headers. A
//! head that doesn't arrive in time, or breaks off, gets no answer: the connection is closed.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::slots::Slots;
use super::socket::Socket;

/// The most that hyper buffers of a connection in each direction; its own default, 400 KiB, is too much for
/// thousands of connections.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// How long to rest after an error that only time or an operator cures, such as too many open files.
const ACCEPT_BACKOFF: Duration = Duration::from_secs(1);

/// How many connections the kernel keeps until they are accepted; it takes `somaxconn` if that is less. With the 128
/// of `TcpListener::bind`, a burst of deliveries on a busy machine loses its later ones for a second, until their
/// senders' kernels knock again.
const BACKLOG: u32 = 4_096;

/// What one client, and all of them together, may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many connections are served at once. One more takes the place of the one that has waited longest for
    /// a request; if all have one in hand, it waits in the kernel's queue.
    pub max_connections: usize,
    /// How long the head of a request may take, counted from the connection's start or the end of the request
    /// before. So it bounds an idle connection too. It is also how long a client may leave its answers unread.
    pub header_read_timeout: Duration,
    /// How long the head of a request may be: request line and headers together.
    pub max_header_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 2_048,
            header_read_timeout: Duration::from_secs(10),
            max_header_bytes: 16 * 1024,
        }
    }
}

/// Makes an address ours, without letting anybody in.
///
/// # Errors
/// It is taken, not ours, or not allowed.
pub fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // As `TcpListener::bind`: a restart doesn't wait for the connections of the process before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Lets connections in.
///
/// # Errors
/// Another process listens on the address by now.
pub fn listen(socket: TcpSocket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)
}

/// Files that are open beside connections: what the runtime, the log, probes and the WorkOS client need.
const RESERVED_FILES: u64 = 64;

impl Limits {
    /// The defaults, with fewer connections where this process may not open as many files: at that limit, it is
    /// the database's connections that would fail. Raises the soft limit, which is often 1,024, as far as is
    /// needed and allowed.
    #[must_use]
    pub fn within_open_files(database_connections: u32) -> Self {
        let limits = Self::default();
        let wanted = limits.max_connections as u64;
        let reserved = RESERVED_FILES + u64::from(database_connections);
        let limit = getrlimit(Resource::Nofile);
        // None is unlimited.
        let enough = |limit: Option<u64>| limit.is_none_or(|files| files >= wanted + reserved);
        if enough(limit.current) {
            return limits;
        }
        let raised = if enough(limit.maximum) {
            Some(wanted + reserved)
        } else {
            limit.maximum
        };
        let result = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: raised,
                ..limit
            },
        );
        let allowed = if result.is_ok() {
            raised
        } else {
            limit.current
        };
        let max_connections = allowed
            .map_or(wanted, |files| files.saturating_sub(reserved))
            .clamp(1, wanted);
        if max_connections < wanted {
            tracing::warn!(
                max_connections,
                "few files may be open (ulimit -n): at most {max_connections} connections instead of {wanted}"
            );
        }
        Self {
            max_connections: usize::try_from(max_connections).unwrap_or(usize::MAX),
            ..limits
        }
    }
}

/// Serves `router` until `stop` is cancelled; then closes `listener` and returns.
///
/// Connections are tasks of `tracker`, and see `stop` themselves: idle ones close at once, requests in flight
/// are answered first. Nothing that a client or the network does ends the loop.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
    tracker: TaskTracker,
) {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(std::cmp::max(MAX_BUFFER_BYTES, limits.max_header_bytes))
        // A client that closes its sending side after the request still gets its answer; and one that hangs up
        // doesn't cancel a handler half-way: the event it sent is as good as any.
        .half_close(true);

    let mut slots = Slots::new(limits.max_connections);
    loop {
        // Cancel-safe: a connection that is accepted and has no slot yet ends with `listener`. There is one such
        // at most; the connection comes first, so that nobody is evicted for nobody.
        let accepted = async {
            let tcp = accept(&listener).await;
            (slots.take().await, tcp)
        };
        let (slot, tcp) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        let socket = Socket::new(tcp, limits.header_read_timeout);
        let service = service_fn({
            let (router, slot) = (router.clone(), Arc::clone(&slot));
            move |request: Request<Incoming>| {
                let busy = slot.busy();
                let answer = router.clone().oneshot(request.map(Body::new));
                async move { Ok::<_, Infallible>(answer.await?.map(|body| busy.until_written(body))) }
            }
        });
        let connection = builder.serve_connection(TokioIo::new(socket), service);
        let stop = stop.clone();
        tracker.spawn(async move {
            let mut connection = pin!(connection);
            let result = tokio::select! {
                biased;
                // First, so that a request that has already arrived is in flight when `stop` is seen.
                result = connection.as_mut() => result,
                // Somebody else has something to say. Ends as the head's timeout does: without a word.
                () = slot.evicted() => return,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = result {
                // The client's doing: gone, too slow, or no HTTP.
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "a connection ended early"
                );
            }
        });
    }
}

/// The next connection. Errors are logged and waited out.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => {
                // Answers are small and written at once: Nagle's algorithm could only delay them.
                if let Err(error) = tcp.set_nodelay(true) {
                    tracing::debug!(error = &error as &dyn std::error::Error, "TCP_NODELAY");
                }
                return tcp;
            }
            // One client, gone before it was accepted; the next may be fine.
            Err(error) if is_about_the_client(&error) => {}
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "no connection can be accepted; trying again"
                );
                sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

fn is_about_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}
