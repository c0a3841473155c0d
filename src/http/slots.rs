//! How many connections are served at once; and who has to go when one more wants in: whoever has been waiting
//! longest for a request. So connections that do nothing, however many, take no place from one that has
//! something to say, and neither memory nor open files grow with them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often to say that all connections are taken.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// Hands out the slots.
pub(super) struct Slots {
    free: Arc<Semaphore>,
    idle: Arc<Idle>,
    max: usize,
    warned_at: Option<Instant>,
}

/// The connections that wait for a request, or for the rest of its head.
#[derive(Default)]
struct Idle {
    /// A `std` mutex: held for a look-up, never across an `.await`.
    queue: Mutex<Queue>,
    /// Told when somebody has become idle.
    joined: Notify,
}

#[derive(Default)]
struct Queue {
    /// By the number under which they joined, so the longest wait is first.
    connections: BTreeMap<u64, CancellationToken>,
    last_number: u64,
}

impl Idle {
    /// A panic can't leave the queue half changed, so a poisoned lock is as good as any.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the longest wait; says whether there was one.
    fn evict(&self) -> bool {
        let evicted = self.queue().connections.pop_first();
        evicted.is_some_and(|(_, evicted)| {
            evicted.cancel();
            true
        })
    }
}

impl Slots {
    pub(super) fn new(max: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(max)),
            idle: Arc::default(),
            max,
            warned_at: None,
        }
    }

    /// A slot for the next connection, taken from the longest idle one if need be. Waits if none is idle.
    pub(super) async fn take(&mut self) -> Arc<Slot> {
        let permit = loop {
            if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                break permit;
            }
            self.warn();
            let evicted = self.idle.evict();
            tokio::select! {
                permit = Arc::clone(&self.free).acquire_owned() => {
                    break permit.expect("the semaphore is never closed");
                }
                () = self.idle.joined.notified(), if !evicted => {}
            }
        };
        let slot = Arc::new(Slot {
            idle: Arc::clone(&self.idle),
            number: Mutex::default(),
            heard: AtomicBool::new(false),
            evicted: CancellationToken::new(),
            _permit: permit,
        });
        slot.join_idle();
        slot
    }

    fn warn(&mut self) {
        let now = Instant::now();
        if self.warned_at.is_none_or(|at| now - at >= WARNING_INTERVAL) {
            self.warned_at = Some(now);
            tracing::warn!(
                max_connections = self.max,
                "all connections are taken: new ones replace idle ones, or wait"
            );
        }
    }
}

/// A connection's slot; free again when the last clone is dropped, in a panic, too.
pub(super) struct Slot {
    idle: Arc<Idle>,
    /// Its number in the queue of the idle, while it is there.
    number: Mutex<Option<u64>>,
    /// Whether bytes have arrived since the last answer.
    heard: AtomicBool,
    evicted: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    /// Returns when the connection should make room for another.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Notes that bytes have arrived.
    pub(super) fn hear(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// Whether a request has begun to arrive since the last answer.
    pub(super) fn is_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.number().is_none()
    }

    /// The connection has a request in hand, until its answer is written: nobody takes its slot.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.leave_idle();
        Busy(Arc::clone(self))
    }

    fn join_idle(&self) {
        let mut queue = self.idle.queue();
        queue.last_number += 1;
        let number = queue.last_number;
        queue.connections.insert(number, self.evicted.clone());
        *self.number() = Some(number);
        drop(queue);
        self.idle.joined.notify_one();
    }

    fn leave_idle(&self) {
        let mut queue = self.idle.queue();
        if let Some(number) = self.number().take() {
            queue.connections.remove(&number);
        }
    }

    /// Changed under the queue's lock only.
    fn number(&self) -> MutexGuard<'_, Option<u64>> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.leave_idle();
    }
}

/// A request in hand.
pub(super) struct Busy(Arc<Slot>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.heard.store(false, Ordering::Relaxed);
        self.0.join_idle();
    }
}

impl Busy {
    /// Ties it to the answer's body, which hyper drops when it has written it.
    pub(super) const fn until_written(self, body: Body) -> BusyBody {
        BusyBody { body, _busy: self }
    }
}

/// A body that keeps its connection busy.
pub(super) struct BusyBody {
    body: Body,
    _busy: Busy,
}

impl HttpBody for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
