//! Delivers events as WorkOS does: at least once, in parallel, out of order, again and again until one is
//! acknowledged, each time with a fresh signature; sometimes after it was acknowledged; sometimes with a clock that
//! is wrong.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::TimeDelta;
use fastrand::Rng;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use workos_sync::clock::{Clock, SystemClock};
use workos_sync::signature;

use crate::replica::{Replica, SECRET};
use crate::report::Report;
use crate::workos::Event;

/// How long an answer is waited for, as the official emulator does.
const GIVE_UP: Duration = Duration::from_secs(5);

/// How the sender sends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Habits {
    pub(crate) connections: usize,
    /// An event may overtake those that are so much older.
    pub(crate) window: Duration,
    /// How many events are delivered twice.
    pub(crate) duplicates: f64,
    /// How many are never delivered.
    pub(crate) lost: f64,
}

/// The sender; it stops when its task is dropped.
#[derive(Debug)]
pub(crate) struct Sender {
    http: reqwest::Client,
    replicas: Vec<Arc<Replica>>,
    habits: Habits,
    connections: Semaphore,
    /// The clock is wrong half of the time.
    pub(crate) skewed: AtomicBool,
    /// Events that are not acknowledged, or are to be delivered once more.
    pending: AtomicUsize,
    acknowledged: Mutex<HashMap<String, usize>>,
    /// The ids of events that are never delivered.
    lost: Mutex<HashSet<String>>,
    violations: Mutex<Vec<String>>,
    report: Arc<Report>,
}

impl Sender {
    pub(crate) fn new(
        replicas: Vec<Arc<Replica>>,
        habits: Habits,
        report: Arc<Report>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            http: crate::http(GIVE_UP)?,
            replicas,
            habits,
            connections: Semaphore::new(habits.connections),
            skewed: AtomicBool::new(false),
            pending: AtomicUsize::new(0),
            acknowledged: Mutex::default(),
            lost: Mutex::default(),
            violations: Mutex::default(),
            report,
        })
    }

    /// Delivers what is emitted.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut events: mpsc::UnboundedReceiver<Arc<Event>>,
        mut rng: Rng,
    ) {
        let mut deliveries = JoinSet::new();
        while let Some(event) = events.recv().await {
            if self.habits.lost > 0.0 && rng.f64() < self.habits.lost {
                self.report.count("lost deliveries");
                self.lost.lock().unwrap().insert(event.id.clone());
                continue;
            }
            let copies = 1 + usize::from(rng.f64() < self.habits.duplicates);
            for _ in 0..copies {
                self.pending.fetch_add(1, Ordering::SeqCst);
                let sender = Arc::clone(&self);
                let (event, mut rng) = (Arc::clone(&event), rng.fork());
                deliveries.spawn(async move {
                    sender.deliver(&event, &mut rng).await;
                    sender.pending.fetch_sub(1, Ordering::SeqCst);
                });
            }
            while deliveries.try_join_next().is_some() {}
        }
    }

    /// How many deliveries are to be made before the sender is content.
    pub(crate) fn pending(&self) -> usize {
        self.pending.load(Ordering::SeqCst)
    }

    pub(crate) fn is_acknowledged(&self, event_id: &str) -> bool {
        self.acknowledged.lock().unwrap().contains_key(event_id)
    }

    pub(crate) fn is_lost(&self, event_id: &str) -> bool {
        self.lost.lock().unwrap().contains(event_id)
    }

    /// An event that was acknowledged is to be acknowledged again.
    pub(crate) fn forget(&self, event_id: &str) {
        self.acknowledged.lock().unwrap().remove(event_id);
    }

    /// What was answered and shouldn't have been.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    fn violation(&self, what: String) {
        self.violations.lock().unwrap().push(what);
    }

    async fn deliver(&self, event: &Event, rng: &mut Rng) {
        sleep(self.habits.window.mul_f64(rng.f64())).await;
        while !self.attempt(event, rng).await {
            sleep(Duration::from_millis(rng.u64(50..400))).await;
        }
    }

    /// Delivers once; says whether it was acknowledged.
    async fn attempt(&self, event: &Event, rng: &mut Rng) -> bool {
        let Ok(_permit) = self.connections.acquire().await else {
            return true;
        };
        let wrong = rng.f64()
            < if self.skewed.load(Ordering::Relaxed) {
                0.5
            } else {
                0.01
            };
        let skew = match (wrong, rng.bool()) {
            (false, _) => 0,
            (true, true) => rng.i64(200..100_000),
            (true, false) => -rng.i64(200..100_000),
        };
        let replica = &self.replicas[rng.usize(..self.replicas.len())];
        let already = self.is_acknowledged(&event.id);
        let undisturbed = || Some((replica.undisturbed()?, self.report.hiccups()));
        let before = undisturbed();
        // By the replica's own clock, or it would refuse every delivery.
        let now = SystemClock.now() + TimeDelta::from_std(replica.ahead()).unwrap_or_default();
        let signed_at = now + TimeDelta::seconds(skew);
        let header = signature::sign(&SECRET.into(), event.body.as_bytes(), signed_at);
        let started = Instant::now();
        let answer = self
            .http
            .post(format!("{}/webhooks/workos", replica.url()))
            .header("workos-signature", header)
            .body(event.body.clone())
            .send()
            .await;
        self.report.count("deliveries");
        let took = started.elapsed();
        let status = match &answer {
            Ok(answer) => answer.status().as_u16(),
            Err(error) => {
                self.report.count("deliveries without an answer");
                // R23, if nobody did anything to the replica meanwhile, nor kept it from running.
                if error.is_timeout() && before.is_some() && before == undisturbed() {
                    self.violation(format!("no answer to {} within {took:?}", event.id));
                }
                return false;
            }
        };
        if before.is_some() && before == undisturbed() {
            self.report.slowest_answer(took);
        }
        self.report.count(match status {
            200 => "answers 200",
            401 => "answers 401",
            503 => "answers 503",
            _ => "other answers",
        });
        let Ok(text) = answer
            .unwrap_or_else(|_| unreachable!("it is an answer"))
            .text()
            .await
        else {
            return false;
        };
        match status {
            200 if wrong => {
                self.violation(format!("{} was accepted {skew} s off: {text}", event.id));
            }
            200 => {
                let body: Value = serde_json::from_str(&text).unwrap_or_default();
                if already && body["status"] != "duplicate" {
                    self.violation(format!("lost: {} is new again: {text}", event.id));
                }
                *self
                    .acknowledged
                    .lock()
                    .unwrap()
                    .entry(event.id.clone())
                    .or_default() += 1;
                if !already {
                    self.report.count("acknowledged");
                }
                return true;
            }
            401 if wrong => {}
            // Whoever can't make it durable in time says so.
            503 => {}
            _ => self.violation(format!("{} was answered {status}: {text}", event.id)),
        }
        false
    }
}
