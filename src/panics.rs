//! Panics: caught in one place, and told as what they are, bugs of ours.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

/// Runs `work` and turns a panic into an error with the panic's message. Everything that the work held, its database
/// connection included, is dropped.
pub(crate) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let mut work = pin!(work);
    poll_fn(|context| {
        // Work that panicked is dropped, and never polled again.
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => {
                let text = message(&*panic).unwrap_or("a panic without a message");
                // It may quote an event, and no column holds a NUL.
                Poll::Ready(Err(text.replace('\0', "\u{fffd}")))
            }
        }
    })
    .await
}

/// What a panic said, if it said anything.
pub(crate) fn message(panic: &(dyn Any + Send)) -> Option<&str> {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R26: a panic before or after an `.await` is an error that says what the panic said.
    #[tokio::test]
    async fn a_panic_is_an_error() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        let said = caught(async {
            tokio::task::yield_now().await;
            panic!("event \0 {}", 7)
        });
        assert_eq!(said.await, Err::<(), _>("event \u{fffd} 7".to_owned()));
    }
}
