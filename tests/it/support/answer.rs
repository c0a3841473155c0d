//! What a fake WorkOS does instead of answering as WorkOS would.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use tokio::sync::watch;

use super::torn::Torn;

/// What the fake does instead of answering as WorkOS would.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// Answers with this.
    Respond {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// Answers as WorkOS would, once it may.
    Hold(watch::Receiver<bool>),
    /// Never answers.
    Hang,
    /// Answers 200 and cuts the connection in the middle of the body.
    Cut,
    /// Answers 200, with a body that doesn't come to its end.
    Drip,
}

impl Answer {
    /// An answer with that status and an empty JSON object.
    pub(crate) fn status(status: u16) -> Self {
        Self::Respond {
            status,
            headers: Vec::new(),
            body: "{}".to_owned(),
        }
    }

    /// The same with a header.
    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        if let Self::Respond { headers, .. } = &mut self {
            headers.push((name, value.into()));
        }
        self
    }

    /// The same with a body.
    pub(crate) fn body(mut self, text: impl Into<String>) -> Self {
        if let Self::Respond { body, .. } = &mut self {
            *body = text.into();
        }
        self
    }

    /// The answer, once it may be given; `None`: it is what WorkOS would answer.
    pub(crate) async fn given(self) -> Option<Response> {
        match self {
            Self::Hold(mut released) => {
                // Dropped is released.
                let _ = released.wait_for(|released| *released).await;
                None
            }
            Self::Hang => std::future::pending().await,
            Self::Cut => Some(Body::new(Torn::default()).into_response()),
            Self::Drip => Some(Body::new(Dripping::default()).into_response()),
            Self::Respond {
                status,
                headers,
                body,
            } => {
                let mut response = Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                Some(response.body(Body::from(body)).unwrap())
            }
        }
    }
}

/// Keeps an answer back until it is released or dropped.
pub(crate) struct Held(watch::Sender<bool>);

impl Held {
    /// One, and the answer that it keeps back.
    pub(crate) fn new() -> (Self, Answer) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), Answer::Hold(receiver))
    }

    /// Lets the answer go.
    pub(crate) fn release(self) {
        self.0.send_replace(true);
    }
}

/// A body that begins, and doesn't come to its end.
#[derive(Default)]
struct Dripping {
    began: bool,
}

impl hyper::body::Body for Dripping {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if std::mem::replace(&mut self.began, true) {
            // Nobody wakes it: hyper drops it with the connection.
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(br#"{"data":["#)))))
    }
}
