//! Reads a request's body within a size and a time, and within what all bodies may take of the memory.

use std::sync::Arc;

use axum::body::{Body, HttpBody};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::problem::Problem;

/// What bodies may take of the memory, in bytes.
const ROOM: usize = 64 * 1_024 * 1_024;

/// So many of the largest body have room in any case.
const LARGEST: usize = 4;

/// What is counted: places of so many bytes.
const PLACE: usize = 1_024;

/// The room that bodies have in memory, from before they are read until they are gone (R30).
#[derive(Debug)]
pub struct Bodies {
    /// The longest body, in bytes.
    limit: usize,
    places: usize,
    free: Arc<Semaphore>,
}

impl Bodies {
    /// For bodies of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let places = std::cmp::max(ROOM, LARGEST * limit).div_ceil(PLACE);
        Self {
            limit,
            places,
            free: Arc::new(Semaphore::new(places)),
        }
    }

    /// How many bytes are taken, in whole places.
    #[must_use]
    pub fn held(&self) -> usize {
        (self.places - self.free.available_permits()) * PLACE
    }

    /// Waits for room until `answer_by`, and reads the whole body, which is to be complete at `deadline`. The permit is
    /// to go with the body, wherever that goes.
    ///
    /// # Errors
    /// There is no room; or those of [`read_body`].
    pub async fn read(
        &self,
        body: Body,
        deadline: Instant,
        answer_by: Instant,
    ) -> Result<(Vec<u8>, OwnedSemaphorePermit), Problem> {
        // All of it at once: bodies that each had a part of their room would wait for each other.
        let places = expected(&body, self.limit)?.div_ceil(PLACE);
        // More than 4 TiB have no room in any case.
        let places = u32::try_from(places).unwrap_or(u32::MAX);
        let mut waited = false;
        let free = Arc::clone(&self.free);
        let mut permit = if let Ok(permit) = free.try_acquire_many_owned(places) {
            permit
        } else {
            waited = true;
            let room = Arc::clone(&self.free).acquire_many_owned(places);
            match timeout_at(answer_by, room).await {
                Ok(Ok(permit)) => permit,
                // Too late; it is never closed.
                Ok(Err(_)) | Err(_) => return Err(Problem::busy()),
            }
        };
        let body = match read_body(body, self.limit, deadline).await {
            // The sender had less time than others.
            Err(problem) if waited && problem == Problem::body_too_slow() => {
                return Err(Problem::busy());
            }
            read => read?,
        };
        // It announced no length, and is shorter than the limit.
        drop(permit.split(permit.num_permits() - body.len().div_ceil(PLACE)));
        Ok((body, permit))
    }
}

/// How long a body is at most: as it announces itself, else `limit`. hyper holds it to its `Content-Length`, and knows
/// when that doesn't count, as beside chunks.
fn expected(body: &Body, limit: usize) -> Result<usize, Problem> {
    let Some(length) = body.size_hint().exact() else {
        return Ok(limit);
    };
    // A length beyond usize is beyond any limit.
    usize::try_from(length)
        .ok()
        .filter(|length| *length <= limit)
        .ok_or_else(|| Problem::body_too_large(limit))
}

/// Reads the whole body.
///
/// A body that announces itself as too long is refused before a byte of it is read: a sender that asks first
/// (`Expect: 100-continue`, RFC 9110, section 10.1.1) is then answered 413 instead of 100, because hyper says
/// "continue" only when the body is first polled.
///
/// # Errors
/// The body is longer than `limit` bytes, is not complete at `deadline`, or breaks off.
pub async fn read_body(body: Body, limit: usize, deadline: Instant) -> Result<Vec<u8>, Problem> {
    let expected = expected(&body, limit)?;
    // What isn't written to takes no memory.
    let mut bytes = Vec::with_capacity(expected);
    let mut body = Limited::new(body, expected);
    let read = timeout_at(deadline, async {
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                bytes.extend_from_slice(&data);
            }
        }
        Ok(())
    });
    match read.await {
        Ok(Ok(())) => {
            bytes.shrink_to_fit();
            Ok(bytes)
        }
        Ok(Err(error)) => {
            let error: axum::BoxError = error;
            if error.is::<LengthLimitError>() {
                return Err(Problem::body_too_large(limit));
            }
            // What hyper says of the sender's framing is no news to anybody but the sender.
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

    use axum::body::Bytes;
    use hyper::body::{Frame, SizeHint};

    use super::*;

    const LIMIT: usize = 4;

    async fn read(body: Body) -> Result<Vec<u8>, Problem> {
        let deadline = Instant::now() + Duration::from_secs(1);
        read_body(body, LIMIT, deadline).await
    }

    type Polled = Poll<Option<Result<Frame<Bytes>, Infallible>>>;

    /// A body that announces a length, or none, and answers each poll alike.
    struct Fake(Option<u64>, fn() -> Polled);

    impl HttpBody for Fake {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Polled {
            self.1()
        }

        fn size_hint(&self) -> SizeHint {
            self.0.map_or_else(SizeHint::default, SizeHint::with_exact)
        }
    }

    fn stalled(length: Option<u64>) -> Body {
        Body::new(Fake(length, || Poll::Pending))
    }

    /// A body that announces no length.
    struct Chunked(Body);

    impl HttpBody for Chunked {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
            Pin::new(&mut self.0).poll_frame(context)
        }
    }

    fn chunked(text: &'static str) -> Body {
        Body::new(Chunked(text.into()))
    }

    /// R30: the limit is what fits, with and without an announced length.
    #[tokio::test]
    async fn a_body_of_exactly_the_limit_fits() {
        for text in ["", "1", "1234"] {
            assert_eq!(read(text.into()).await.unwrap(), text.as_bytes());
            assert_eq!(read(chunked(text)).await.unwrap(), text.as_bytes());
        }
        let too_large = Err(Problem::body_too_large(LIMIT));
        assert_eq!(read("12345".into()).await, too_large);
        assert_eq!(read(chunked("12345")).await, too_large);
    }

    /// R30: what announces itself as too long is not read at all.
    #[tokio::test]
    async fn an_announced_excess_is_refused_unread() {
        for announced in [5, u64::MAX] {
            let body = Body::new(Fake(Some(announced), || panic!("the body was read")));
            assert_eq!(read(body).await, Err(Problem::body_too_large(LIMIT)));
        }
    }

    /// R30: a body has room from before it is read until it is gone; what has none is told to come back. A body of no
    /// announced length has room for the longest until its length is known.
    #[tokio::test]
    async fn bodies_share_a_bounded_room() {
        let limit = ROOM / 2;
        let bodies = Bodies::new(limit);
        assert_eq!(bodies.places * PLACE, LARGEST * limit);
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        let read = |body| bodies.read(body, later, now);

        let (body, first) = read(chunked("12345")).await.unwrap();
        assert_eq!((body.as_slice(), bodies.held()), (&b"12345"[..], PLACE));
        let large = limit - PLACE;
        let mut slow = Vec::new();
        for _ in 0..LARGEST {
            let mut body = Box::pin(read(stalled(u64::try_from(large).ok())));
            assert!(timeout_at(now, &mut body).await.is_err());
            slow.push(body);
        }
        assert_eq!(bodies.held(), LARGEST * large + PLACE);
        assert_eq!(read(chunked("1")).await.unwrap_err(), Problem::busy());
        assert!(read("1".into()).await.is_ok());
        slow.pop();
        assert!(read(chunked("1")).await.is_ok());
        drop((slow, first));
        assert_eq!(bodies.held(), 0);
    }

    /// R30: who waited for room, and then had too little time, isn't called slow.
    #[tokio::test]
    async fn a_wait_for_room_is_not_the_senders_fault() {
        let bodies = Bodies::new(ROOM);
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        let read = |deadline| bodies.read(stalled(None), deadline, later);
        assert_eq!(read(now).await.unwrap_err(), Problem::body_too_slow());
        let mut slow: Vec<_> = (0..LARGEST).map(|_| Box::pin(read(later))).collect();
        for slow in &mut slow {
            assert!(timeout_at(now, slow).await.is_err());
        }
        let mut waits = Box::pin(read(now));
        assert!(timeout_at(now, &mut waits).await.is_err());
        slow.pop();
        assert_eq!(waits.await.unwrap_err(), Problem::busy());
    }

    /// R30: a body that never comes meets the deadline.
    #[tokio::test]
    async fn a_body_that_stalls_is_too_slow() {
        assert_eq!(
            read_body(stalled(Some(4)), LIMIT, Instant::now()).await,
            Err(Problem::body_too_slow())
        );
    }
}
