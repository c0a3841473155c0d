//! The network between the replicas and Postgres. It can be cut, stall, be slow, or swallow everything; and it knows
//! enough of Postgres's protocol to lose just the answer to a COMMIT, so that nobody knows whether it happened.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How the network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    Up,
    /// Each packet takes so much longer.
    Slow(Duration),
    /// Nothing moves; what was sent arrives later.
    Stalled,
    /// Connections end at once, and so does each new one.
    Cut,
    /// What is sent is swallowed, and nobody is told. Afterwards the old connections end.
    BlackHole,
    /// The same, but the old connections never end: the peer has vanished.
    Vanished,
}

impl Network {
    fn passes(self) -> bool {
        matches!(self, Self::Up | Self::Slow(_) | Self::Stalled)
    }
}

/// What becomes of the next transaction that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ambush {
    /// COMMIT reaches the server; its answer reaches nobody.
    CommitAnswer,
    /// The connection is cut as soon as COMMIT was sent.
    CommitSent,
    /// The connection is cut before COMMIT gets through.
    CommitLost,
    /// The same, of a transaction that inserts into the inbox.
    InsertAnswer,
}

#[derive(Debug, Clone, Copy)]
struct State {
    network: Network,
    /// Counts the losses: a connection from before one stays lost.
    losses: u64,
}

#[derive(Debug)]
struct Shared {
    /// The port that it leads to.
    server: AtomicU16,
    state: watch::Sender<State>,
    ambushes: Mutex<VecDeque<Ambush>>,
    /// How many connections fell into an ambush.
    caught: AtomicU64,
}

/// The proxy; it is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// Starts a proxy before a server on this machine.
    pub(crate) async fn start(server: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            server: AtomicU16::new(server),
            state: watch::Sender::new(State {
                network: Network::Up,
                losses: 0,
            }),
            ambushes: Mutex::default(),
            caught: AtomicU64::new(0),
        });
        let mut accepting = JoinSet::new();
        accepting.spawn({
            let shared = Arc::clone(&shared);
            async move {
                let mut connections = JoinSet::new();
                while let Ok((client, _)) = listener.accept().await {
                    connections.spawn(pass(client, Arc::clone(&shared)));
                    while connections.try_join_next().is_some() {}
                }
            }
        });
        Ok(Self {
            port,
            shared,
            _accepting: accepting,
        })
    }

    /// Leads new connections to another server. Those that are there stay as they are.
    pub(crate) fn lead_to(&self, server: u16) {
        self.shared.server.store(server, Ordering::SeqCst);
    }

    /// Changes how the network is.
    pub(crate) fn set(&self, network: Network) {
        self.shared.state.send_modify(|state| {
            state.network = network;
            state.losses += u64::from(!network.passes());
        });
    }

    /// Lies in wait for the next transaction that ends so.
    pub(crate) fn ambush(&self, ambush: Ambush) {
        self.shared.ambushes.lock().unwrap().push_back(ambush);
    }

    /// Gives up the ambushes that nobody fell into.
    pub(crate) fn call_off(&self) {
        self.shared.ambushes.lock().unwrap().clear();
    }

    /// How many connections fell into an ambush.
    pub(crate) fn caught(&self) -> u64 {
        self.shared.caught.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// The ambush for a transaction that ends, if there is one.
    fn spring(&self, ending: Ending) -> Option<Ambush> {
        let mut ambushes = self.ambushes.lock().unwrap();
        let place = ambushes.iter().position(|ambush| match ending {
            Ending::Commit => *ambush != Ambush::InsertAnswer,
            Ending::CommitOfInsert => true,
        })?;
        self.caught.fetch_add(1, Ordering::Relaxed);
        ambushes.remove(place)
    }
}

/// Passes a connection on until it ends or the network is lost.
async fn pass(client: TcpStream, shared: Arc<Shared>) {
    let mut seen = shared.state.subscribe();
    let State { network, losses } = *seen.borrow_and_update();
    // Kept here, so that the client's side stays open in a black hole.
    let (from_client, to_client) = client.into_split();
    if network.passes() {
        let server = shared.server.load(Ordering::SeqCst);
        let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
            return;
        };
        let (from_server, to_server) = server.into_split();
        let _ = to_server.as_ref().set_nodelay(true);
        let _ = to_client.as_ref().set_nodelay(true);
        let eaten = AtomicBool::new(false);
        let mut to_client = to_client;
        tokio::select! {
            // The loss first: nothing passes after it.
            biased;
            _ = seen.wait_for(|state| state.losses != losses) => {}
            () = forward(from_client, to_server, &shared, &eaten) => return,
            () = answer(from_server, &mut to_client, &shared, &eaten) => return,
        }
        swallow(seen, to_client).await;
    } else {
        swallow(seen, to_client).await;
    }
}

/// Keeps a lost connection open while the network swallows everything.
async fn swallow(mut seen: watch::Receiver<State>, _open: OwnedWriteHalf) {
    loop {
        let network = seen.borrow_and_update().network;
        match network {
            Network::BlackHole => {}
            Network::Vanished => std::future::pending().await,
            _ => return,
        }
        if seen.changed().await.is_err() {
            return;
        }
    }
}

/// Waits as long as the network takes.
async fn delay(seen: &mut watch::Receiver<State>) {
    loop {
        let network = seen.borrow_and_update().network;
        match network {
            Network::Slow(delay) => return tokio::time::sleep(delay).await,
            Network::Stalled => {}
            _ => return,
        }
        if seen.changed().await.is_err() {
            return;
        }
    }
}

/// Client to server, message by message.
async fn forward(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    shared: &Shared,
    eaten: &AtomicBool,
) {
    let mut seen = shared.state.subscribe();
    let mut frontend = Frontend::default();
    while client
        .read_buf(&mut frontend.buffer)
        .await
        .is_ok_and(|read| read > 0)
    {
        delay(&mut seen).await;
        let mut ready = 0;
        let mut ambush = None;
        while ambush.is_none()
            && let Some((length, ending)) = frontend.next(ready)
        {
            ambush = ending.and_then(|ending| shared.spring(ending));
            if ambush == Some(Ambush::CommitLost) {
                return;
            }
            ready += length;
        }
        if matches!(ambush, Some(Ambush::CommitAnswer | Ambush::InsertAnswer)) {
            eaten.store(true, Ordering::SeqCst);
        }
        if server.write_all(&frontend.buffer[..ready]).await.is_err() {
            return;
        }
        frontend.buffer.drain(..ready);
        if ambush == Some(Ambush::CommitSent) {
            return;
        }
    }
}

/// Server to client; or to nobody.
async fn answer(
    mut server: OwnedReadHalf,
    client: &mut OwnedWriteHalf,
    shared: &Shared,
    eaten: &AtomicBool,
) {
    let mut seen = shared.state.subscribe();
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = server.read(&mut buffer).await {
        delay(&mut seen).await;
        if eaten.load(Ordering::SeqCst) {
            // ReadyForQuery, the last message of an answer: the transaction has ended, and nobody knows how.
            if matches!(buffer[..read], [.., b'Z', 0, 0, 0, 5, _]) {
                return;
            }
        } else if client.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// How a transaction is ended by a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Commit,
    /// COMMIT of a transaction that has inserted into the inbox.
    CommitOfInsert,
}

/// What a client sends (<https://www.postgresql.org/docs/current/protocol-message-formats.html>).
#[derive(Debug, Default)]
struct Frontend {
    buffer: Vec<u8>,
    /// The first message has no type.
    started: bool,
    /// The names of the statements that insert into the inbox.
    inserts: HashSet<Vec<u8>>,
    /// One of them was executed in this transaction.
    has_inserted: bool,
}

impl Frontend {
    /// The length of the next whole message of the buffer, and what it ends.
    fn next(&mut self, at: usize) -> Option<(usize, Option<Ending>)> {
        let rest = self.buffer.get(at..)?;
        let head = usize::from(self.started);
        let length = u32::from_be_bytes(rest.get(head..head + 4)?.try_into().ok()?);
        let length = head + usize::try_from(length).ok()?;
        let message = rest.get(..length)?;
        if !self.started {
            self.started = true;
            return Some((length, None));
        }
        let body = &message[5..];
        let mut texts = body.split(|byte| *byte == 0);
        let (first, second) = (texts.next()?, texts.next().unwrap_or_default());
        let mut ending = None;
        match message[0] {
            // Query: begin, commit, rollback.
            b'Q' => {
                let has_inserted = std::mem::take(&mut self.has_inserted);
                if first.eq_ignore_ascii_case(b"commit") {
                    ending = Some(if has_inserted {
                        Ending::CommitOfInsert
                    } else {
                        Ending::Commit
                    });
                }
            }
            // Parse: name, text.
            b'P' => {
                let text = String::from_utf8_lossy(second);
                if text.contains("insert into workos_sync.webhook_events") {
                    self.inserts.insert(first.to_vec());
                } else {
                    self.inserts.remove(first);
                }
            }
            // Bind: portal, name.
            b'B' => self.has_inserted |= self.inserts.contains(second),
            _ => {}
        }
        Some((length, ending))
    }
}
