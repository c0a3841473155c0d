//! The accept loop, on hyper: `axum::serve` has no header read timeout and no connection limit.
//!
//! What hyper answers by itself, before there is a request for the router, and so without problem+json: an
//! empty 400 to what is no HTTP/1, and an empty 431 to a head that is too large or has more than 100 headers. A
//! head that doesn't arrive in time, or breaks off, gets no answer: the connection is closed.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::socket::Socket;

/// The most that hyper buffers of a connection in each direction; its own default, 400 KiB, is too much for
/// thousands of connections.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// How long to rest after an error that only time or an operator cures, such as too many open files.
const ACCEPT_BACKOFF: Duration = Duration::from_secs(1);

/// How often to say that all connections are taken.
const FULL_WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// What one client, and all of them together, may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many connections are served at once. More wait in the kernel's queue until one ends.
    pub max_connections: usize,
    /// How long the head of a request may take, counted from the connection's start or the end of the request
    /// before. So it bounds an idle connection too, and connections that do nothing can lock nobody out for
    /// longer. It is also how long a client may leave its answers unread.
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
        // Both arms are cancel-safe: a permit or a connection is either taken or not. The permit comes first, so
        // that a connection that can't be served yet isn't accepted yet.
        let accepted = async {
            let slot = slots.take().await;
            (slot, accept(&listener).await)
        };
        let (slot, tcp) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        let socket = Socket::new(tcp, limits.header_read_timeout);
        let service = TowerToHyperService::new(router.clone());
        let connection = builder.serve_connection(TokioIo::new(socket), service);
        let stop = stop.clone();
        tracker.spawn(async move {
            let mut connection = pin!(connection);
            let result = tokio::select! {
                biased;
                // First, so that a request that has already arrived is in flight when `stop` is seen.
                result = connection.as_mut() => result,
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
            drop(slot);
        });
    }
}

/// The permits for connections; each moves into its connection's task, and ends with it even in a panic.
struct Slots {
    free: Arc<Semaphore>,
    max: usize,
    warned_at: Option<Instant>,
}

impl Slots {
    fn new(max: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(max)),
            max,
            warned_at: None,
        }
    }

    async fn take(&mut self) -> OwnedSemaphorePermit {
        if let Err(TryAcquireError::NoPermits) = self.free.try_acquire().map(drop) {
            let now = Instant::now();
            if self
                .warned_at
                .is_none_or(|at| now - at >= FULL_WARNING_INTERVAL)
            {
                self.warned_at = Some(now);
                tracing::warn!(
                    max_connections = self.max,
                    "all connections are taken: new ones wait"
                );
            }
        }
        Arc::clone(&self.free)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed")
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
