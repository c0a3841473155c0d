//! The load generator: keep-alive connections, each of which sends the next event as soon as the last one is
//! answered (or when it is due, at a given rate).
//!
//! The HTTP/1.1 client is written by hand, because it shares the machine with what it measures: one write and
//! one read a request, nothing allocated but the body.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::events::{Event, PATH, sign};

/// The service promises an answer within 4 seconds; this is a hung one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// So many refusals are told in full.
const REFUSALS_SHOWN: usize = 3;

/// What the receiver answered, and when.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) started: Instant,
    /// From the first send to the last answer.
    pub(crate) elapsed: Duration,
    /// Microseconds.
    pub(crate) latency: Histogram<u64>,
    pub(crate) duplicates: usize,
}

/// Sends each event once. Any answer that isn't a 2xx fails the whole.
pub(crate) async fn send(
    address: SocketAddr,
    events: &Arc<Vec<Event>>,
    connections: usize,
    rate: Option<f64>,
) -> anyhow::Result<Answers> {
    // Connected beforehand: what is measured is deliveries, not handshakes.
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Client::connect(address).await?);
    }
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let mut senders = JoinSet::new();
    for client in clients {
        senders.spawn(sender(
            client,
            Arc::clone(events),
            Arc::clone(&next),
            started,
            rate,
        ));
    }

    let mut latency = Histogram::new(3)?;
    let (mut duplicates, mut refusals, mut refused) = (0, Vec::new(), 0);
    while let Some(sent) = senders.join_next().await {
        let sent = sent??;
        latency.add(sent.latency)?;
        duplicates += sent.duplicates;
        refused += sent.refusals.len();
        refusals.extend(sent.refusals.into_iter().take(REFUSALS_SHOWN));
    }
    let elapsed = started.elapsed();
    if refused > 0 {
        refusals.truncate(REFUSALS_SHOWN);
        bail!(
            "{refused} deliveries were refused:\n{}",
            refusals.join("\n")
        );
    }
    ensure!(
        latency.len() == events.len() as u64,
        "{} events were sent, {} answered",
        events.len(),
        latency.len()
    );
    Ok(Answers {
        started,
        elapsed,
        latency,
        duplicates,
    })
}

/// What one connection saw.
struct Sent {
    latency: Histogram<u64>,
    duplicates: usize,
    refusals: Vec<String>,
}

async fn sender(
    mut client: Client,
    events: Arc<Vec<Event>>,
    next: Arc<AtomicUsize>,
    started: Instant,
    rate: Option<f64>,
) -> anyhow::Result<Sent> {
    let mut sent = Sent {
        latency: Histogram::new(3)?,
        duplicates: 0,
        refusals: Vec::new(),
    };
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(event) = events.get(number) else {
            return Ok(sent);
        };
        // With a rate, an event that found no free connection in time has waited since it was due: a receiver
        // that stalls can't hide it by being asked less often. A timer that fires late is our own doing.
        let due = rate.map(|rate| started + Duration::from_secs_f64(number as f64 / rate));
        let since = match due {
            Some(due) if due > Instant::now() => {
                sleep_until(due).await;
                None
            }
            due => due,
        };
        let body = event.body();
        let signature = sign(&body);
        let since = since.unwrap_or_else(Instant::now);
        let answer = timeout(ANSWER_TIMEOUT, client.post(&signature, &body))
            .await
            .with_context(|| format!("event {}: no answer", event.id))?
            .with_context(|| format!("event {}", event.id))?;
        sent.latency
            .record(u64::try_from(since.elapsed().as_micros())?)?;
        if !(200..300).contains(&answer.status) {
            sent.refusals
                .push(format!("{}: {} {}", event.id, answer.status, answer.body));
        }
        sent.duplicates += usize::from(answer.body.contains(r#""duplicate""#));
    }
}

struct Answer<'a> {
    status: u16,
    body: &'a str,
}

struct Client {
    stream: TcpStream,
    address: SocketAddr,
    request: Vec<u8>,
    response: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            address,
            request: Vec::new(),
            response: Vec::new(),
        })
    }

    async fn post(&mut self, signature: &str, body: &str) -> anyhow::Result<Answer<'_>> {
        self.request.clear();
        self.request.extend_from_slice(
            format!(
                "POST {PATH} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nWorkOS-Signature: {signature}\r\nContent-Length: {}\r\n\r\n",
                self.address,
                body.len()
            )
            .as_bytes(),
        );
        self.request.extend_from_slice(body.as_bytes());
        self.stream.write_all(&self.request).await?;

        self.response.clear();
        loop {
            let read = self.stream.read_buf(&mut self.response).await?;
            ensure!(read > 0, "the connection was closed");
            if let Some((status, start, length)) = head(&self.response)?
                && self.response.len() >= start + length
            {
                let body = std::str::from_utf8(&self.response[start..start + length])?;
                return Ok(Answer { status, body });
            }
        }
    }
}

/// Status, start and length of the body; `None` while the head isn't complete. Every receiver here sends a
/// Content-Length.
fn head(response: &[u8]) -> anyhow::Result<Option<(u16, usize, usize)>> {
    let Some(end) = response.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&response[..end])?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("an answer without a status")?;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, length)| length.trim().parse().ok())
        .context("an answer without a Content-Length")?;
    Ok(Some((status, end + 4, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_its_head_is_complete() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(head(&answer[..30]).unwrap(), None);
        assert_eq!(head(answer).unwrap(), Some((200, 38, 2)));
        assert!(head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
