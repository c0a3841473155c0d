//! The accept loop, on hyper: `axum::serve` has no header read timeout and no connection limit.
//!
//! What hyper answers by itself, before there is a request for the router, and so without problem+json: an
//! empty 400 to what is no HTTP/1, and an empty 431 to a head that is too large or has more than 100 headers. A
//! head that doesn't arrive in time, or breaks off, gets no answer: the connection is closed.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
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
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::slots::{Slot, Slots};
use super::socket::Socket;

/// The most that hyper buffers of a connection in each direction; its own default, 400 KiB, is too much for
/// thousands of connections.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// How long to rest after an error that only time or an operator cures, such as too many open files.
const ACCEPT_BACKOFF: Duration = Duration::from_secs(1);

/// How long, during the shutdown, a client that has just connected may take to begin its request: its connection was
/// accepted, so it expects to be served.
const FIRST_BYTE: Duration = Duration::from_secs(1);

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

/// Serves `router` until `stop` is cancelled; then serves the connections that the kernel has accepted by then, closes
/// `listener` and returns.
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
    let mut door = Door {
        http: http(&limits),
        slots: Slots::new(limits.max_connections),
        router,
        limits,
        stop,
        tracker,
    };
    loop {
        let tcp = tokio::select! {
            biased;
            () = door.stop.cancelled() => break,
            tcp = accept(&listener) => tcp,
        };
        // The connection comes before the slot, so that no idle one is evicted in vain. Once accepted it is served, even
        // if `stop` is cancelled while it waits for its slot.
        door.let_in(tcp).await;
    }
    // Clients in the accept queue are connected already: closing the listener would reset them.
    match listener.into_std() {
        Ok(listener) => {
            // The smallest backlog: the kernel turns new clients away meanwhile, so that the queue gets empty.
            let _best_effort = rustix::net::listen(&listener, 0);
            door.http.keep_alive(false);
            while let Some(tcp) = accepted(&listener).await {
                door.let_in(tcp).await;
            }
        }
        Err(error) => tracing::error!(
            error = &error as &dyn std::error::Error,
            "the connections in the accept queue are reset"
        ),
    }
}

fn http(limits: &Limits) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(std::cmp::max(MAX_BUFFER_BYTES, limits.max_header_bytes))
        // A client that closes its sending side after the request still gets its answer; and one that hangs up
        // doesn't cancel a handler half-way: the event it sent is as good as any.
        .half_close(true);
    http
}

/// Everything a connection is served with.
struct Door {
    http: http1::Builder,
    slots: Slots,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Door {
    /// Serves a connection, as soon as there is a slot for it.
    async fn let_in(&mut self, tcp: TcpStream) {
        let since = Instant::now();
        let slot = self.slots.take().await;
        let socket = Socket::new(tcp, Arc::clone(&slot), self.limits.header_read_timeout);
        let service = service_fn({
            let (router, slot) = (self.router.clone(), Arc::clone(&slot));
            move |request: Request<Incoming>| {
                let busy = slot.busy();
                let answer = router.clone().oneshot(request.map(Body::new));
                async move { Ok::<_, Infallible>(answer.await?.map(|body| busy.until_written(body))) }
            }
        });
        let connection = self.http.serve_connection(TokioIo::new(socket), service);
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            let mut connection = pin!(connection);
            let served = async {
                tokio::select! {
                    biased;
                    // First, so that a request that has already arrived is in flight when `stop` is seen.
                    result = connection.as_mut() => return result,
                    () = stop.cancelled() => {}
                }
                let first_byte = since + FIRST_BYTE;
                if let Some(result) = arrived(connection.as_mut(), &slot, first_byte).await {
                    return result;
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            };
            let result = tokio::select! {
                biased;
                result = served => result,
                // Somebody else has something to say. Ends as the head's timeout does: without a word.
                () = slot.evicted() => return,
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

/// Drives a connection until the head of a request that has begun to arrive is complete: hyper's own shutdown would
/// close it in the middle. If nothing has arrived, waits for it until `first_byte`. Returns the connection's result if it
/// ended.
async fn arrived<C: Future>(
    mut connection: Pin<&mut C>,
    slot: &Slot,
    first_byte: Instant,
) -> Option<C::Output> {
    let mut silence = pin!(sleep_until(first_byte));
    poll_fn(|cx| match connection.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending if slot.is_busy() => Poll::Ready(None),
        // hyper's timeout for the head ends this.
        Poll::Pending if slot.is_heard() => Poll::Pending,
        Poll::Pending => silence.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// The next connection. Errors are logged and waited out.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => return at_once(tcp),
            Err(error) => wait_out(&error).await,
        }
    }
}

/// A connection that the kernel has accepted by now; `None` if there is no other.
async fn accepted(listener: &std::net::TcpListener) -> Option<TcpStream> {
    loop {
        // Not through tokio, which learns of a connection a moment later.
        let tcp = listener.accept().and_then(|(tcp, _)| {
            tcp.set_nonblocking(true)?;
            TcpStream::from_std(tcp)
        });
        match tcp {
            Ok(tcp) => return Some(at_once(tcp)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => wait_out(&error).await,
        }
    }
}

/// Answers are small and written at once: Nagle's algorithm could only delay them.
fn at_once(tcp: TcpStream) -> TcpStream {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(error = &error as &dyn std::error::Error, "TCP_NODELAY");
    }
    tcp
}

async fn wait_out(error: &io::Error) {
    // One client, gone before it was accepted; the next may be fine.
    if is_about_the_client(error) {
        return;
    }
    tracing::error!(
        error = error as &dyn std::error::Error,
        "no connection can be accepted; trying again"
    );
    sleep(ACCEPT_BACKOFF).await;
}

fn is_about_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}
