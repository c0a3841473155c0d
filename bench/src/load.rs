//! The load generator: keep-alive connections, each of which sends the next event as soon as the last one is
//! answered (or when it is due, at a given rate).
//!
//! It shares the machine with what it measures, so it is as cheap as it can be: requests are built and signed
//! beforehand, the HTTP/1.1 client is written by hand, with one write and one read a request, and all of it runs
//! on one thread.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep, sleep_until};

use crate::events::{Event, PATH, sign};
use crate::process;

/// The service promises an answer within 4 seconds. When nothing at all is answered for so long, it hangs.
const SILENCE: Duration = Duration::from_secs(30);
/// So many refusals are told in full.
const REFUSALS_SHOWN: usize = 3;
/// Longer than every answer to a delivery.
const ANSWER_BYTES: usize = 4_096;

/// What the receiver answered, and when.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) started: Instant,
    /// From the first send to the last answer.
    pub(crate) elapsed: Duration,
    /// Of each delivery, in ascending order.
    pub(crate) latencies: Vec<Duration>,
    pub(crate) duplicates: usize,
    /// What the generator itself has used of the processor meanwhile.
    pub(crate) cpu_seconds: f64,
}

/// Sends `count` deliveries: the events in turn, and from the first again when there are no more. Any answer
/// that isn't a 2xx fails the whole.
pub(crate) async fn send(
    address: SocketAddr,
    events: &[Event],
    count: usize,
    connections: usize,
    rate: Option<f64>,
) -> anyhow::Result<Answers> {
    // Signed beforehand, just now: a signature is good for three minutes.
    let requests = events
        .iter()
        .map(|event| Request::new(address, event))
        .collect();
    // Connected beforehand too: what is measured is deliveries, not handshakes. After the signing, for a connection
    // that stays idle is closed.
    let mut clients = Vec::with_capacity(connections);
    for _ in 0..connections {
        clients.push(Client::connect(address).await?);
    }
    let cpu_before = process::usage(std::process::id())?.cpu_seconds;
    let load = Rc::new(Load {
        requests,
        count,
        rate,
        started: Instant::now(),
        next: Cell::new(0),
        seen: RefCell::new(Seen::of(count)),
    });
    LocalSet::new()
        .run_until(async {
            let mut senders = JoinSet::new();
            for client in clients {
                senders.spawn_local(sender(client, Rc::clone(&load)));
            }
            let all = async {
                while let Some(sent) = senders.join_next().await {
                    sent??;
                }
                Ok(())
            };
            tokio::select! {
                result = all => result,
                answered = silence(&load) => {
                    bail!("no answer in {SILENCE:?}; {answered} of {count} deliveries were answered before")
                }
            }
        })
        .await?;
    let elapsed = load.started.elapsed();
    let cpu_seconds = process::usage(std::process::id())?.cpu_seconds - cpu_before;

    let mut seen = load.seen.take();
    if seen.refused > 0 {
        bail!(
            "{} deliveries were refused:\n{}",
            seen.refused,
            seen.refusals.join("\n")
        );
    }
    ensure!(
        seen.latencies.len() == count,
        "{count} deliveries were to be sent, {} were answered",
        seen.latencies.len()
    );
    seen.latencies.sort_unstable();
    Ok(Answers {
        started: load.started,
        elapsed,
        latencies: seen.latencies,
        duplicates: seen.duplicates,
        cpu_seconds,
    })
}

/// What the connections share, all on one thread.
struct Load {
    requests: Vec<Request>,
    count: usize,
    rate: Option<f64>,
    started: Instant,
    /// The next delivery.
    next: Cell<usize>,
    seen: RefCell<Seen>,
}

/// What was answered so far.
#[derive(Default)]
struct Seen {
    latencies: Vec<Duration>,
    duplicates: usize,
    refused: usize,
    refusals: Vec<String>,
}

impl Seen {
    fn of(count: usize) -> Self {
        Self {
            latencies: Vec::with_capacity(count),
            ..Self::default()
        }
    }
}

/// Returns how many were answered, when no more are.
async fn silence(load: &Load) -> usize {
    let mut before = None;
    loop {
        let answered = load.seen.borrow().latencies.len();
        if before == Some(answered) {
            return answered;
        }
        before = Some(answered);
        sleep(SILENCE).await;
    }
}

async fn sender(mut client: Client, load: Rc<Load>) -> anyhow::Result<()> {
    loop {
        let number = load.next.get();
        if number == load.count {
            return Ok(());
        }
        load.next.set(number + 1);
        let request = &load.requests[number % load.requests.len()];
        // With a rate, an event that found no free connection in time has waited since it was due: a receiver
        // that stalls can't hide it by being asked less often. A timer that fires late is our own doing.
        let due = load
            .rate
            .map(|rate| load.started + Duration::from_secs_f64(number as f64 / rate));
        let since = match due {
            Some(due) if due > Instant::now() => {
                sleep_until(due).await;
                Instant::now()
            }
            Some(due) => due,
            None => Instant::now(),
        };
        let answer = client
            .ask(&request.bytes)
            .await
            .with_context(|| format!("event {}", request.event_id))?;
        let mut seen = load.seen.borrow_mut();
        seen.latencies.push(since.elapsed());
        if !(200..300).contains(&answer.status) {
            seen.refused += 1;
            if seen.refusals.len() < REFUSALS_SHOWN {
                let Answer { status, body } = answer;
                seen.refusals
                    .push(format!("{}: {status} {body}", request.event_id));
            }
        } else if answer.body.contains(r#""duplicate""#) {
            seen.duplicates += 1;
        }
    }
}

/// A delivery as it goes over the wire.
struct Request {
    event_id: String,
    bytes: Vec<u8>,
}

impl Request {
    fn new(address: SocketAddr, event: &Event) -> Self {
        let body = event.body();
        let bytes = format!(
            "POST {PATH} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nWorkOS-Signature: {}\r\nContent-Length: {}\r\n\r\n{body}",
            sign(&body),
            body.len()
        );
        Self {
            event_id: event.id.clone(),
            bytes: bytes.into_bytes(),
        }
    }
}

pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a str,
}

/// A connection that is kept.
pub(crate) struct Client {
    stream: TcpStream,
    response: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            response: Vec::with_capacity(ANSWER_BYTES),
        })
    }

    pub(crate) async fn ask(&mut self, request: &[u8]) -> anyhow::Result<Answer<'_>> {
        self.stream.write_all(request).await?;
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
    use tokio::net::TcpListener;

    use super::*;
    use crate::events::Kind;

    #[test]
    fn an_answer_is_read_when_its_head_is_complete() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(head(&answer[..30]).unwrap(), None);
        assert_eq!(head(answer).unwrap(), Some((200, 38, 2)));
        assert!(head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    /// Answers every request the same, on one connection.
    async fn send_to(answer: &'static str) -> anyhow::Result<Answers> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let events: Vec<_> = (1..=3)
            .map(|number| Event::new(number, Kind::Updated, "org_1".into(), "Acme".into(), None))
            .collect();
        let receiver = async {
            let (mut stream, _) = listener.accept().await?;
            let mut request = [0; 8_192];
            // Each request fits, and the next one comes after the answer.
            while stream.read(&mut request).await? > 0 {
                stream.write_all(answer.as_bytes()).await?;
            }
            std::future::pending().await
        };
        tokio::select! {
            answers = send(address, &events, events.len(), 1, None) => answers,
            failed = receiver => failed,
        }
    }

    #[tokio::test]
    async fn a_refusal_fails_the_run() {
        let refused = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nfull";
        let error = send_to(refused).await.unwrap_err().to_string();
        assert!(
            error.starts_with("3 deliveries were refused:\nevent_"),
            "{error}"
        );
        assert!(error.contains(": 503 full"), "{error}");

        let taken = "HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{\"status\":\"duplicate\"}";
        let answers = send_to(taken).await.unwrap();
        assert_eq!((answers.latencies.len(), answers.duplicates), (3, 3));
    }
}
