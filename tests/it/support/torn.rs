//! An answer that breaks off.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::Frame;

/// A body that breaks off; hyper then closes the connection.
#[derive(Default)]
pub(crate) struct Torn {
    sent: bool,
}

impl hyper::body::Body for Torn {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(if self.sent {
            Err(std::io::ErrorKind::ConnectionReset.into())
        } else {
            self.sent = true;
            Ok(Frame::data(Bytes::from_static(br#"{"external_id":nu"#)))
        }))
    }
}
