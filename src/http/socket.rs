//! A client's socket, with the two patiences that hyper leaves to its caller: for a client that doesn't read its
//! answers, and for one that is still sending when the connection ends. It also notes that bytes have arrived: hyper
//! doesn't say whether a request has begun.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::slots::Slot;

/// How long to read on, for nothing, after our side is closed.
///
/// Closing a socket with unread bytes makes the kernel send a reset: a client that is still sending fails
/// there, and may never see the 413 that was sent before (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(1);

/// A TCP stream that waits for its client only so long.
pub(super) struct Socket {
    tcp: TcpStream,
    /// Told that bytes have arrived.
    slot: Arc<Slot>,
    /// How long a write may make no progress: a client that pipelines requests and reads no answer would
    /// otherwise keep its permit for ever.
    write_timeout: Duration,
    /// Runs while a write waits.
    write_deadline: Option<Pin<Box<Sleep>>>,
    /// Runs from the end of our side.
    linger_deadline: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) const fn new(tcp: TcpStream, slot: Arc<Slot>, write_timeout: Duration) -> Self {
        Self {
            tcp,
            slot,
            write_timeout,
            write_deadline: None,
            linger_deadline: None,
        }
    }

    /// Passes on what a write came to; one that waits, until its time is up.
    fn bounded(
        &mut self,
        cx: &mut Context<'_>,
        write: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if write.is_ready() {
            self.write_deadline = None;
            return write;
        }
        let deadline = self
            .write_deadline
            .get_or_insert_with(|| Box::pin(sleep(self.write_timeout)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client doesn't read its answers",
        )))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.tcp).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.slot.hear();
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.bounded(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.tcp).poll_write_vectored(cx, slices);
        self.bounded(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let deadline = if let Some(deadline) = &mut this.linger_deadline {
            deadline
        } else {
            ready!(Pin::new(&mut this.tcp).poll_shutdown(cx))?;
            this.linger_deadline.insert(Box::pin(sleep(LINGER)))
        };
        // The deadline first: a client that never stops sending can't outrun it.
        let mut buffer = [0; 4096];
        while deadline.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut buffer);
            match ready!(Pin::new(&mut this.tcp).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // The client has closed its side, or is gone.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
