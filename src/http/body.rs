//! Reads a request's body within a size and a time.

use axum::body::{Body, Bytes};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::{Instant, timeout_at};

use super::problem::Problem;

/// Reads the whole body.
///
/// A body that announces itself as too long is refused before a byte of it is read: a sender that asks first
/// (`Expect: 100-continue`, RFC 9110, section 10.1.1) is then answered 413 instead of 100, because hyper says
/// "continue" only when the body is first polled.
///
/// # Errors
/// The body is longer than `limit` bytes, is not complete at `deadline`, or breaks off.
pub async fn read_body(
    body: Body,
    content_length: Option<u64>,
    limit: usize,
    deadline: Instant,
) -> Result<Bytes, Problem> {
    // A length beyond usize is beyond any limit.
    if content_length
        .is_some_and(|length| !usize::try_from(length).is_ok_and(|length| length <= limit))
    {
        return Err(Problem::body_too_large(limit));
    }
    match timeout_at(deadline, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::body_too_large(limit)),
        // What hyper says of the sender's framing is no news to anybody but the sender.
        Ok(Err(error)) => {
            tracing::debug!(error = &*error, "a request's body is incomplete");
            Err(Problem::body_incomplete())
        }
        Err(_elapsed) => Err(Problem::body_too_slow()),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use std::time::Duration;

    use axum::body::HttpBody;
    use hyper::body::Frame;

    use super::*;

    const LIMIT: usize = 4;

    async fn read(body: Body, content_length: Option<u64>) -> Result<Bytes, Problem> {
        let deadline = Instant::now() + Duration::from_secs(1);
        read_body(body, content_length, LIMIT, deadline).await
    }

    /// R30: the limit is what fits, with and without a Content-Length.
    #[tokio::test]
    async fn a_body_of_exactly_the_limit_fits() {
        for (length, announced) in [(4, Some(4)), (4, None), (0, None), (0, Some(0))] {
            let body = vec![b'x'; length];
            assert_eq!(read(body.clone().into(), announced).await.unwrap(), body);
        }
        assert_eq!(
            read("12345".into(), None).await,
            Err(Problem::body_too_large(LIMIT))
        );
    }

    type Polled = Poll<Option<Result<Frame<Bytes>, Infallible>>>;

    /// A body that answers each poll alike.
    struct Fake(fn() -> Polled);

    impl HttpBody for Fake {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Polled {
            self.0()
        }
    }

    /// R30: what announces itself as too long is not read at all.
    #[tokio::test]
    async fn an_announced_excess_is_refused_unread() {
        let body = || Body::new(Fake(|| panic!("the body was read")));
        for announced in [5, u64::MAX] {
            assert_eq!(
                read(body(), Some(announced)).await,
                Err(Problem::body_too_large(LIMIT))
            );
        }
    }

    /// R30: a body that never comes meets the deadline.
    #[tokio::test]
    async fn a_body_that_stalls_is_too_slow() {
        let body = Body::new(Fake(|| Poll::Pending));
        assert_eq!(
            read_body(body, Some(4), LIMIT, Instant::now()).await,
            Err(Problem::body_too_slow())
        );
    }
}
