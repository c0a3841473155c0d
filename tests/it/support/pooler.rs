//! A pooler before Postgres, in transaction mode: a server connection is lent for a transaction, then to somebody else.
//!
//! It does with prepared statements what PgBouncer 1.21 does: a server connection has one for each text, which every client
//! shares, and one that it lacks is prepared before it is used. Nothing else of a session is kept: no setting, no lock.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// The pooler; it is gone when this is dropped, and so are its connections.
#[derive(Debug)]
pub(crate) struct Pooler {
    pub(crate) port: u16,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

impl Pooler {
    /// Starts one before a server, with at most so many connections to it.
    pub(crate) async fn start(server: (String, u16), connections: usize) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            server,
            idle: Mutex::default(),
            generation: AtomicU64::new(0),
            places: Arc::new(Semaphore::new(connections)),
            changed: Notify::new(),
        });
        let mut accepting = JoinSet::new();
        let serving = Arc::clone(&shared);
        accepting.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                clients.spawn(async move {
                    // Either side may go at any time. The other one sees that its connection ends.
                    let _ = serve(client, &shared).await;
                    shared.changed.notify_waiters();
                });
                while clients.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            port,
            shared,
            _accepting: accepting,
        })
    }

    /// Ends the connections to the server, each as soon as it is free: PgBouncer's `RECONNECT`.
    pub(crate) fn reconnect(&self) {
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        self.shared.idle.lock().unwrap().clear();
    }
}

#[derive(Debug)]
struct Shared {
    server: (String, u16),
    /// How often all connections were ended: those of an earlier one aren't lent again.
    generation: AtomicU64,
    /// Lent in turn, so that a client gets to all of them.
    idle: Mutex<VecDeque<Server>>,
    /// For how many more connections to the server there is room.
    places: Arc<Semaphore>,
    /// A connection became idle, or was lost.
    changed: Notify,
}

impl Shared {
    /// Lends a connection, and waits for one if all are lent. An error where some were lost: the client is to come again,
    /// for it takes a client's login to make one.
    async fn lend(&self) -> io::Result<Server> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(server) = self.living() {
                return Ok(server);
            }
            if self.places.available_permits() > 0 {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            changed.await;
        }
    }

    /// The next idle connection that the server keeps.
    fn living(&self) -> Option<Server> {
        let mut idle = self.idle.lock().unwrap();
        while let Some(mut server) = idle.pop_front() {
            if server.is_alive() {
                return Some(server);
            }
        }
        None
    }

    fn give_back(&self, server: Server) {
        let mut idle = self.idle.lock().unwrap();
        if server.generation == self.generation.load(Ordering::SeqCst) {
            idle.push_back(server);
        } else {
            drop(server);
        }
        self.changed.notify_waiters();
    }
}

/// A message, but the first of a client: its type, and what follows its length
/// (<https://www.postgresql.org/docs/current/protocol-message-formats.html>).
#[derive(Debug)]
struct Message {
    kind: u8,
    body: Vec<u8>,
}

impl Message {
    fn new(kind: u8, parts: &[&[u8]]) -> Self {
        Self {
            kind,
            body: parts.concat(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.body.len() + 4).unwrap().to_be_bytes();
        [&[self.kind][..], &length, &self.body].concat()
    }

    /// The body, without so many bytes, as a text that ends with a zero, and what follows it.
    fn text(&self, skip: usize) -> (&[u8], &[u8]) {
        let rest = &self.body[skip..];
        let end = rest.iter().position(|byte| *byte == 0).unwrap();
        (&rest[..end], &rest[end + 1..])
    }
}

/// What a client asks for in the place of a version of the protocol.
const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSSENC: u32 = 80_877_104;

/// One direction of a connection, message by message.
#[derive(Debug)]
struct Incoming {
    from: OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Incoming {
    fn new(from: OwnedReadHalf) -> Self {
        let buffer = Vec::new();
        Self { from, buffer }
    }

    /// The next message; an error at the end. Cancel-safe: what was read stays in the buffer.
    async fn next(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = self.buffered(1) {
                let body = message[5..].to_vec();
                return Ok(Message {
                    kind: message[0],
                    body,
                });
            }
            self.read().await?;
        }
    }

    /// The first message of a client, which has no type, as it is.
    async fn first(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(message) = self.buffered(0) {
                return Ok(message);
            }
            self.read().await?;
        }
    }

    /// A whole message whose length is behind so many bytes, if it is there.
    fn buffered(&mut self, head: usize) -> Option<Vec<u8>> {
        let length = self.buffer.get(head..head + 4)?.try_into().unwrap();
        let length = head + usize::try_from(u32::from_be_bytes(length)).unwrap();
        (self.buffer.len() >= length).then(|| self.buffer.drain(..length).collect())
    }

    async fn read(&mut self) -> io::Result<()> {
        match self.from.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// A connection to the server.
#[derive(Debug)]
struct Server {
    incoming: Incoming,
    outgoing: OwnedWriteHalf,
    /// The names of the statements that it has.
    prepared: HashSet<Vec<u8>>,
    /// What Parse, Close and Sync are answered with, in turn.
    expected: VecDeque<Expected>,
    /// How many `ReadyForQuery` are to come.
    unready: usize,
    /// Something was sent since the last Sync.
    unsynced: bool,
    /// What the last `ReadyForQuery` said: `I` outside of a transaction.
    state: u8,
    generation: u64,
    place: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum Expected {
    /// An answer for the client.
    Asked,
    /// An answer that is ours.
    Own,
    /// An answer to Close that is one to Parse for the client: the server had the statement.
    Parsed,
    /// The server has a statement of that name now. The client gets the answer if it asked.
    Prepared { name: Vec<u8>, asked: bool },
    /// `ReadyForQuery`. After an error, what is expected before it never comes.
    Ready,
}

impl Server {
    async fn connect(shared: &Shared) -> io::Result<Self> {
        let (host, port) = &shared.server;
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        let (from, outgoing) = stream.into_split();
        Ok(Self {
            incoming: Incoming::new(from),
            outgoing,
            prepared: HashSet::new(),
            expected: VecDeque::new(),
            unready: 0,
            unsynced: false,
            state: b'I',
            generation: shared.generation.load(Ordering::SeqCst),
            place: None,
        })
    }

    /// Whether the server keeps it. What the server says of its settings meanwhile is no client's matter.
    fn is_alive(&mut self) -> bool {
        loop {
            let Incoming { from, buffer } = &mut self.incoming;
            match from.try_read_buf(buffer) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        while let Some(message) = self.incoming.buffered(1) {
            if message[0] == b'E' {
                return false;
            }
        }
        true
    }

    /// Outside of a transaction, and with nothing to answer.
    fn is_free(&self) -> bool {
        self.unready == 0 && !self.unsynced && self.state == b'I'
    }

    /// Sends a message of a client on, with the statement that it names as the server knows it.
    async fn forward(&mut self, message: Message, statements: &mut Statements) -> io::Result<()> {
        match message.kind {
            // Parse: a name, and the statement.
            b'P' => {
                let (name, statement) = message.text(0);
                if name.is_empty() {
                    self.send(&message, Some(Expected::Asked)).await
                } else {
                    let statement = Statement(statement.to_vec());
                    statements.insert(name.to_vec(), statement.clone());
                    self.parse(&statement).await
                }
            }
            // Bind: a portal, the name of a statement, values.
            b'B' => {
                let (portal, _) = message.text(0);
                let (name, values) = message.text(portal.len() + 1);
                match statements.get(name) {
                    None => self.send(&message, None).await,
                    Some(statement) => {
                        let name = self.have(statement).await?;
                        let bind = Message::new(b'B', &[portal, &[0], &name, &[0], values]);
                        self.send(&bind, None).await
                    }
                }
            }
            // Describe: what is meant, and its name.
            b'D' if message.body[0] == b'S' => match statements.get(message.text(1).0) {
                None => self.send(&message, None).await,
                Some(statement) => {
                    let name = self.have(statement).await?;
                    self.send(&Message::new(b'D', &[b"S", &name, &[0]]), None)
                        .await
                }
            },
            // Close: the same.
            b'C' => {
                // The others share the statement.
                let kept =
                    message.body[0] == b'S' && statements.remove(message.text(1).0).is_some();
                let close = if kept { close(NOTHING) } else { message };
                self.send(&close, Some(Expected::Asked)).await
            }
            _ => self.send(&message, None).await,
        }
    }

    async fn send(&mut self, message: &Message, expected: Option<Expected>) -> io::Result<()> {
        self.expected.extend(expected);
        // Query, FunctionCall, Sync
        if matches!(message.kind, b'Q' | b'F' | b'S') {
            self.unready += 1;
            self.unsynced = false;
            self.expected.push_back(Expected::Ready);
        } else {
            self.unsynced = true;
        }
        self.outgoing.write_all(&message.bytes()).await
    }

    /// Answers a Parse of a client's: only what the server lacks is prepared.
    async fn parse(&mut self, statement: &Statement) -> io::Result<()> {
        if self.prepared.contains(&statement.name()) {
            self.send(&close(NOTHING), Some(Expected::Parsed)).await
        } else {
            self.prepare(statement, true).await
        }
    }

    /// Sees to it that the server has a statement; says what it is called there.
    async fn have(&mut self, statement: &Statement) -> io::Result<Vec<u8>> {
        let name = statement.name();
        if !self.prepared.contains(&name) {
            self.prepare(statement, false).await?;
        }
        Ok(name)
    }

    /// Closes it first: it may be on its way already.
    async fn prepare(&mut self, statement: &Statement, asked: bool) -> io::Result<()> {
        let name = statement.name();
        self.send(&close(&name), Some(Expected::Own)).await?;
        let parse = Message::new(b'P', &[&name, &[0], &statement.0]);
        self.send(&parse, Some(Expected::Prepared { name, asked }))
            .await
    }

    /// The next message of the server's, if it is one for the client. Cancel-safe.
    async fn answer(&mut self) -> io::Result<Option<Message>> {
        let mut message = self.incoming.next().await?;
        let mut is_for_the_client = true;
        match message.kind {
            // ParseComplete, CloseComplete
            b'1' | b'3' => match self.expected.pop_front() {
                Some(Expected::Own) => is_for_the_client = false,
                Some(Expected::Parsed) => message.kind = b'1',
                Some(Expected::Prepared { name, asked }) => {
                    self.prepared.insert(name);
                    is_for_the_client = asked;
                }
                Some(Expected::Asked | Expected::Ready) | None => {}
            },
            b'Z' => {
                while !matches!(self.expected.pop_front(), None | Some(Expected::Ready)) {}
                self.unready -= 1;
                self.state = message.body[0];
            }
            _ => {}
        }
        Ok(is_for_the_client.then_some(message))
    }
}

/// A statement of a client's: what follows its name in Parse.
#[derive(Debug, Clone, Hash)]
struct Statement(Vec<u8>);

impl Statement {
    /// What it is called at the server.
    fn name(&self) -> Vec<u8> {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        format!("pooled_{:x}", hasher.finish()).into_bytes()
    }
}

/// A client's named statements, by its own names.
type Statements = HashMap<Vec<u8>, Statement>;

/// The name of a statement that nobody has. To close it is no error.
const NOTHING: &[u8] = b"nothing";

fn close(name: &[u8]) -> Message {
    Message::new(b'C', &[b"S", name, &[0]])
}

/// Serves a client until it goes, or the server connection that is lent to it does.
async fn serve(client: TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    let (from, mut to) = client.into_split();
    let mut client = Incoming::new(from);
    log_in(&mut client, &mut to, shared).await?;
    let mut statements = Statements::new();
    loop {
        let message = client.next().await?;
        // Terminate
        if message.kind == b'X' {
            return Ok(());
        }
        let mut server = shared.lend().await?;
        server.forward(message, &mut statements).await?;
        // A client that goes in the middle of a transaction takes the connection with it.
        while !server.is_free() {
            tokio::select! {
                message = client.next() => server.forward(message?, &mut statements).await?,
                answer = server.answer() => if let Some(answer) = answer? {
                    to.write_all(&answer.bytes()).await?;
                },
            }
        }
        shared.give_back(server);
    }
}

/// Has a client log in at the server itself, by a connection that joins the others if there is room for it.
async fn log_in(client: &mut Incoming, to: &mut OwnedWriteHalf, shared: &Shared) -> io::Result<()> {
    let startup = loop {
        let message = client.first().await?;
        match u32::from_be_bytes(message[4..8].try_into().unwrap()) {
            CANCEL => return Err(io::ErrorKind::Unsupported.into()),
            SSL | GSSENC => to.write_all(b"N").await?,
            _ => break message,
        }
    };
    let mut server = Server::connect(shared).await?;
    server.outgoing.write_all(&startup).await?;
    loop {
        let message = server.incoming.next().await?;
        to.write_all(&message.bytes()).await?;
        match message.kind {
            // Neither AuthenticationOk nor AuthenticationSASLFinal asks for an answer.
            b'R' if !matches!(message.body[..4], [0, 0, 0, 0 | 12]) => {
                let answer = client.next().await?;
                server.outgoing.write_all(&answer.bytes()).await?;
            }
            b'Z' => break,
            _ => {}
        }
    }
    if let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() {
        server.place = Some(place);
        shared.give_back(server);
    }
    Ok(())
}
