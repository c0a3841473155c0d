//! R30, R31: the accept loop against clients that are slow, broken, greedy or late, over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use workos_sync::http::body::read_body;
use workos_sync::http::health::healthz;
use workos_sync::http::listener::{Limits, bind, listen, serve};
use workos_sync::http::problem::Problem;

/// What never takes so long; where it passes, the test fails.
const LONG: Duration = Duration::from_mins(1);

/// How long a test waits for what should happen at once.
const SOON: Duration = Duration::from_secs(10);

/// For what should pass within a test.
const SHORT: Duration = Duration::from_millis(200);

const BODY_LIMIT: usize = 64;

/// The gates that a held handler passes: it adds a permit to `entered`, takes one of `released`, and adds one
/// to `left`.
#[derive(Clone)]
struct Gates {
    entered: Arc<Semaphore>,
    released: Arc<Semaphore>,
    left: Arc<Semaphore>,
    body_timeout: Duration,
}

struct Server {
    address: SocketAddr,
    gates: Gates,
    stop: CancellationToken,
    tracker: TaskTracker,
    accept_loop: JoinHandle<()>,
}

impl Server {
    /// Patient in everything, unless told otherwise.
    async fn start() -> Self {
        Self::start_with(
            Limits {
                header_read_timeout: LONG,
                ..Limits::default()
            },
            LONG,
        )
        .await
    }

    async fn start_with(limits: Limits, body_timeout: Duration) -> Self {
        let gates = Gates {
            entered: Arc::new(Semaphore::new(0)),
            released: Arc::new(Semaphore::new(0)),
            left: Arc::new(Semaphore::new(0)),
            body_timeout,
        };
        let router = Router::new()
            .route("/healthz", get(healthz))
            .route("/held", get(held))
            .route("/body", post(body))
            .route("/large", get(async || vec![0; 32 * 1024 * 1024]))
            .fallback(async || Problem::not_found())
            .method_not_allowed_fallback(async || Problem::method_not_allowed())
            .with_state(gates.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let accept_loop = tracker.spawn(serve(
            listener,
            router,
            limits,
            stop.clone(),
            tracker.clone(),
        ));
        Self {
            address,
            gates,
            stop,
            tracker,
            accept_loop,
        }
    }

    async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    /// What a connection of its own is told.
    async fn ask(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.connect().await;
        client.send(request).await;
        client.answer().await
    }

    /// A handler has been called.
    async fn entered(&self) {
        let permit = timeout(SOON, self.gates.entered.acquire()).await.unwrap();
        permit.unwrap().forget();
    }

    fn release(&self) {
        self.gates.released.add_permits(1);
    }

    /// Stops, and waits for every connection.
    async fn drained(self) {
        self.stop.cancel();
        self.tracker.close();
        timeout(SOON, self.tracker.wait()).await.unwrap();
        self.accept_loop.await.unwrap();
    }
}

async fn held(State(gates): State<Gates>) -> &'static str {
    gates.entered.add_permits(1);
    gates.released.acquire().await.unwrap().forget();
    gates.left.add_permits(1);
    "released"
}

async fn body(State(gates): State<Gates>, body: Body) -> Result<String, Problem> {
    let deadline = Instant::now() + gates.body_timeout;
    let body = read_body(body, BODY_LIMIT, deadline).await?;
    Ok(format!("{} bytes", body.len()))
}

struct Client(TcpStream);

impl Client {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The next answer, as it came; what came of it if the connection ended.
    async fn answer(&mut self) -> String {
        timeout(SOON, async {
            let mut answer = Vec::new();
            loop {
                let text = String::from_utf8_lossy(&answer).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head
                        .to_ascii_lowercase()
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                    if body.len() >= length.unwrap_or(0) {
                        return text;
                    }
                }
                match self.0.read_u8().await {
                    Ok(byte) => answer.push(byte),
                    Err(_) => return text,
                }
            }
        })
        .await
        .expect("an answer, soon")
    }

    /// What comes until the server closes.
    async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        timeout(SOON, self.0.read_to_end(&mut rest))
            .await
            .expect("the server closes the connection, soon")
            .expect("in order, without a reset");
        String::from_utf8(rest).unwrap()
    }
}

#[track_caller]
fn assert_problem(answer: &str, status: u16, code: &str) {
    assert!(
        answer.starts_with(&format!("HTTP/1.1 {status} "))
            && answer.contains("content-type: application/problem+json\r\n")
            && answer.contains(&format!(r#""code":"{code}""#)),
        "{answer}"
    );
}

#[track_caller]
fn assert_ok(answer: &str) {
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

const HEALTHZ: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
const HELD: &str = "GET /held HTTP/1.1\r\nhost: x\r\n\r\n";

fn short_header_timeout() -> Limits {
    Limits {
        header_read_timeout: SHORT,
        ..Limits::default()
    }
}

/// R30: a head that doesn't come, or not to its end, is not waited for.
#[tokio::test]
async fn a_slow_head_ends_the_connection() {
    let server = Server::start_with(short_header_timeout(), LONG).await;
    for start in ["", "GET /healthz HTTP/1.1\r\nhos"] {
        let mut client = server.connect().await;
        client.send(start).await;
        assert_eq!(client.rest().await, "", "after {start:?}");
    }
    server.drained().await;
}

/// R30: the time for a head runs between requests too, however the one before was answered.
#[tokio::test]
async fn an_idle_connection_is_closed() {
    let server = Server::start_with(short_header_timeout(), LONG).await;
    for request in [
        HEALTHZ,
        HELD,
        "POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody",
        "POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody",
    ] {
        let mut client = server.connect().await;
        client.send(request).await;
        if request == HELD {
            server.entered().await;
            server.release();
        }
        let answer = client.answer().await;
        assert!(answer.starts_with("HTTP/1.1 "), "{request:?}: {answer:?}");
        assert_eq!(client.rest().await, "", "after {request:?}");
    }
    server.drained().await;
}

/// R30: a request that takes its time isn't taken for an idle connection.
#[tokio::test]
async fn the_head_timeout_spares_requests_in_flight() {
    let server = Server::start_with(short_header_timeout(), LONG).await;
    let mut client = server.connect().await;
    client.send(HELD).await;
    server.entered().await;
    // An idle connection that began after the request shows that the time has passed.
    assert_eq!(server.connect().await.rest().await, "");
    server.release();
    assert_ok(&client.answer().await);
    server.drained().await;
}

/// R30: 408.
#[tokio::test]
async fn a_slow_body_is_answered_408() {
    let server = Server::start_with(Limits::default(), SHORT).await;
    for start in [
        "POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbo",
        "POST /body HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbo",
    ] {
        let mut client = server.connect().await;
        client.send(start).await;
        let answer = client.answer().await;
        assert_problem(&answer, 408, "body_too_slow");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(client.rest().await, "");
    }
    server.drained().await;
}

/// R30: whoever breaks off in the middle of a body is told so if still there, and leaves nothing behind if not.
#[tokio::test]
async fn a_truncated_body_is_answered_400() {
    let server = Server::start().await;
    for start in [
        "POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbo",
        "POST /body HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n",
    ] {
        let mut client = server.connect().await;
        client.send(start).await;
        client.0.shutdown().await.unwrap();
        assert_problem(&client.answer().await, 400, "body_incomplete");
        assert_eq!(client.rest().await, "");

        let mut client = server.connect().await;
        client.send(start).await;
        drop(client);
    }
    assert_ok(&server.ask(HEALTHZ).await);
    server.drained().await;
}

/// R30: 413, by what is announced and by what comes.
#[tokio::test]
async fn a_body_over_the_limit_is_answered_413() {
    let server = Server::start().await;
    for request in [
        "POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 65\r\n\r\n".to_owned(),
        format!(
            "POST /body HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n41\r\n{}\r\n",
            "x".repeat(65)
        ),
    ] {
        let mut client = server.connect().await;
        client.send(request).await;
        let answer = client.answer().await;
        assert_problem(&answer, 413, "body_too_large");
        assert!(answer.contains("the body is longer than 64 bytes"));
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(client.rest().await, "");
    }
    let exact = format!(
        "POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 64\r\n\r\n{}",
        "x".repeat(64)
    );
    assert_ok(&server.ask(exact).await);
    server.drained().await;
}

/// R30: a client that is still sending can send on and then read its 413; most give up at a reset.
#[tokio::test]
async fn a_413_reaches_a_client_that_is_still_sending() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    // More than the kernels on both sides hold: it can only be sent if it is read.
    let body = vec![b'x'; 32 * 1024 * 1024];
    client
        .send(format!(
            "POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            body.len()
        ))
        .await;
    client.send(body).await;
    let answer = client.rest().await;
    assert_problem(&answer, 413, "body_too_large");
    drop(client);
    server.drained().await;
}

/// R30: who asks first is answered before a byte of the body (RFC 9110, section 10.1.1).
#[tokio::test]
async fn an_expectation_is_met_or_refused_before_the_body() {
    let server = Server::start().await;
    let ask = |length: usize| {
        format!(
            "POST /body HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut client = server.connect().await;
    client.send(ask(65)).await;
    assert_problem(&client.answer().await, 413, "body_too_large");
    assert_eq!(client.rest().await, "");

    let mut client = server.connect().await;
    client.send(ask(4)).await;
    assert_eq!(client.answer().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("body").await;
    assert_ok(&client.answer().await);
    drop(client);
    server.drained().await;
}

/// R30: chunks that are none are no body.
#[tokio::test]
async fn bad_chunks_are_answered_400() {
    let server = Server::start().await;
    for chunks in [
        "zz\r\nbody\r\n0\r\n\r\n",
        "4\r\nbody!\r\n0\r\n\r\n",
        "-1\r\n",
        "10000000000000000\r\n",
        "4;\0\r\nbody\r\n\0\r\n",
    ] {
        let mut client = server.connect().await;
        client
            .send(format!(
                "POST /body HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"
            ))
            .await;
        assert_problem(&client.answer().await, 400, "body_incomplete");
        assert_eq!(client.rest().await, "", "after {chunks:?}");
    }
    server.drained().await;
}

/// R30: what never becomes a request is answered by hyper: a bare status, and the end of the connection.
#[tokio::test]
async fn a_head_that_is_none_or_too_large_is_refused() {
    let server = Server::start().await;
    let large = "x".repeat(16 * 1024);
    for (request, status) in [
        (
            format!("GET /healthz HTTP/1.1\r\nhost: x\r\nlarge: {large}\r\n\r\n"),
            "431 Request Header Fields Too Large",
        ),
        (
            format!("GET /{large} HTTP/1.1\r\nhost: x\r\n\r\n"),
            "431 Request Header Fields Too Large",
        ),
        (
            format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101)),
            "431 Request Header Fields Too Large",
        ),
        (
            "\u{16}\u{3}\u{1} hello, TLS\r\n\r\n".to_owned(),
            "400 Bad Request",
        ),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), "400 Bad Request"),
        (
            "GET /\0 HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
            "400 Bad Request",
        ),
        (
            "GET / HTTP/1.1\r\nhost: \0\r\n\r\n".to_owned(),
            "400 Bad Request",
        ),
        (
            "GET / HTTP/1.1\r\nno header\r\n\r\n".to_owned(),
            "400 Bad Request",
        ),
        (
            "POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n".to_owned(),
            "400 Bad Request",
        ),
        (
            "POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"
                .to_owned(),
            "400 Bad Request",
        ),
    ] {
        let mut client = server.connect().await;
        client.send(&request).await;
        let answer = client.rest().await;
        let start: String = request.chars().take(40).collect();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}\r\n")) && answer.ends_with("\r\n\r\n"),
            "{start:?}: {answer:?}"
        );
    }
    server.drained().await;
}

/// R30: a client that sends a little now and then, but never the end, isn't waited for either.
#[tokio::test]
async fn a_client_that_drips_is_not_waited_for() {
    let server = Server::start_with(short_header_timeout(), SHORT).await;
    for (start, drop, answered) in [
        ("GET /healthz HTTP/1.1\r\nx: ", "x", None),
        ("GET /healthz HTTP/1.1\r\n", "x: y\r\n", None),
        (
            "POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 64\r\n\r\n",
            "x",
            Some("body_too_slow"),
        ),
        (
            "POST /body HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
            "1\r\nx\r\n",
            Some("body_too_slow"),
        ),
    ] {
        let mut client = server.connect().await;
        client.send(start).await;
        let mut answer = Vec::new();
        let (mut reader, mut writer) = client.0.split();
        timeout(SOON, async {
            let dripping = async {
                // Until the server has closed.
                while writer.write_all(drop.as_bytes()).await.is_ok() {
                    tokio::time::sleep(SHORT / 8).await;
                }
            };
            tokio::join!(dripping, async {
                // A reset, if a drop arrives after the end.
                let _ = reader.read_to_end(&mut answer).await;
            });
        })
        .await
        .expect("the server closes the connection, soon");
        let answer = String::from_utf8(answer).unwrap();
        match answered {
            None => assert_eq!(answer, "", "{start:?}"),
            Some(code) => assert_problem(&answer, 408, code),
        }
    }
    server.drained().await;
}

/// R30: requests that are sent without waiting are answered in their order; what follows a body that isn't read is
/// no request.
#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let post = "POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: ";
    client
        .send(format!(
            "{HEALTHZ}{post}4\r\n\r\nbodyGET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n{post}65\r\n\r\n{HEALTHZ}"
        ))
        .await;
    client.0.shutdown().await.unwrap();
    let answers = client.rest().await;
    let statuses: Vec<&str> = answers
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|answer| &answer[..3])
        .collect();
    assert_eq!(statuses, ["200", "200", "404", "413"], "{answers}");
    server.drained().await;
}

/// R30: the old version is answered, and its connection ends with the answer.
#[tokio::test]
async fn http_1_0_is_answered() {
    let server = Server::start().await;
    for request in [
        "GET /healthz HTTP/1.0\r\n\r\n",
        "POST /body HTTP/1.0\r\ncontent-length: 4\r\n\r\nbody",
    ] {
        let mut client = server.connect().await;
        client.send(request).await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    }
    server.drained().await;
}

/// R30: a body whose end is told in two ways, or in one that is unknown, is never read in one of them and the rest
/// taken for a request: the connection ends with the answer.
#[tokio::test]
async fn an_ambiguous_body_ends_the_connection() {
    let server = Server::start().await;
    for headers in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        "transfer-encoding: gzip\r\n",
        "transfer-encoding: chunked, gzip\r\n",
        "content-length: 5\r\ncontent-length: 64\r\n",
        "content-length: 5, 64\r\n",
        "content-length: +5\r\n",
        "content-length: 5\0\r\n",
        "content-length: 18446744073709551616\r\n",
        "content-length : 5\r\n",
    ] {
        let mut client = server.connect().await;
        client
            .send(format!(
                "POST /body HTTP/1.1\r\nhost: x\r\n{headers}\r\n0\r\n\r\n{HEALTHZ}"
            ))
            .await;
        let answers = client.rest().await;
        assert_eq!(
            answers.matches("HTTP/1.1 ").count(),
            1,
            "{headers:?}: {answers}"
        );
    }
    server.drained().await;
}

/// R23: a burst of connections waits to be accepted; the kernel drops none, which would come back a second later.
#[tokio::test]
async fn a_burst_waits_to_be_accepted() {
    // A thousand connections are more files than a process may open by default.
    let _ = Limits::within_open_files(0);
    let listener = listen(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let mut burst = Vec::new();
    timeout(SOON, async {
        for _ in 0..1_000 {
            burst.push(TcpStream::connect(address).await.unwrap());
        }
    })
    .await
    .expect("nobody has to knock twice");
}

/// R30: connections over the limit take the place of those that have waited longest for a request; who has one in
/// hand keeps its place.
#[tokio::test]
async fn connections_over_the_limit_replace_idle_ones() {
    let limits = Limits {
        max_connections: 2,
        // Too long for it to be what ends them.
        header_read_timeout: LONG,
        ..Limits::default()
    };
    let server = Server::start_with(limits, LONG).await;
    let mut first = server.connect().await;
    first.send(HELD).await;
    server.entered().await;
    let mut second = server.connect().await;
    second.send(HELD).await;
    server.entered().await;

    // Both have a request in hand: the third is not served until one of them has its answer.
    let mut third = server.connect().await;
    third.send(HEALTHZ).await;
    assert!(timeout(SHORT * 2, third.0.readable()).await.is_err());
    server.release();
    assert_ok(&third.answer().await);
    let answer = first.rest().await;
    assert!(answer.ends_with("released"), "whole: {answer}");

    server.release();
    assert_ok(&second.answer().await);
    // The third has been idle for longer than the second.
    assert_ok(&server.ask(HEALTHZ).await);
    assert_eq!(third.rest().await, "");
    second.send(HEALTHZ).await;
    assert_ok(&second.answer().await);

    // Idle from the start, or in the middle of a head.
    let mut idle = Vec::new();
    for start in ["", "GET /hea", "GET /healthz HTTP/1.1\r\nx:"].repeat(10) {
        let mut client = server.connect().await;
        client.send(start).await;
        idle.push(client);
    }
    assert_ok(&server.ask(HEALTHZ).await);
    drop(idle);
    server.drained().await;
}

/// R30: a client that reads nothing of its answer doesn't keep its place.
#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let limits = Limits {
        max_connections: 1,
        ..short_header_timeout()
    };
    let server = Server::start_with(limits, LONG).await;
    let mut deaf = server.connect().await;
    deaf.send("GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_ok(&server.ask(HEALTHZ).await);
    drop(deaf);
    server.drained().await;
}

/// A client that closes its sending side after the request (`nc -N` does) gets its answer.
#[tokio::test]
async fn a_half_closed_connection_is_answered() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send(HELD).await;
    client.0.shutdown().await.unwrap();
    server.entered().await;
    server.release();
    assert_ok(&client.rest().await);
    server.drained().await;
}

/// R23: a sender that hangs up doesn't cancel the handling of what it sent.
#[tokio::test]
async fn a_hang_up_does_not_cancel_a_request() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send(HELD).await;
    server.entered().await;
    drop(client);
    // Served after it: the server has had its chance to see the hang-up.
    assert_ok(&server.ask(HEALTHZ).await);
    server.release();
    let left = timeout(SOON, server.gates.left.acquire()).await;
    left.unwrap().unwrap().forget();
    server.drained().await;
}

/// R31: what is in flight is answered; idle connections end at once; new ones are refused.
#[tokio::test]
async fn a_stop_finishes_what_is_in_flight() {
    let server = Server::start().await;
    let mut in_flight = server.connect().await;
    in_flight.send(HELD).await;
    server.entered().await;
    let mut between_requests = server.connect().await;
    between_requests.send(HEALTHZ).await;
    assert_ok(&between_requests.answer().await);
    let mut untouched = server.connect().await;
    // Accepted, because this later one is.
    assert_ok(&server.ask(HEALTHZ).await);

    server.stop.cancel();
    assert_eq!(between_requests.rest().await, "");
    assert_eq!(untouched.rest().await, "");
    let Server {
        address,
        gates,
        tracker,
        accept_loop,
        ..
    } = server;
    timeout(SOON, accept_loop).await.unwrap().unwrap();
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    gates.released.add_permits(1);
    let answer = in_flight.rest().await;
    assert_ok(&answer);
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("released"), "{answer}");
    tracker.close();
    timeout(SOON, tracker.wait()).await.unwrap();
}

/// R31: whoever is connected when the service is asked to stop is served, although nobody has accepted the connection
/// yet. One that has just come may take a moment to begin.
#[tokio::test]
async fn a_stop_serves_who_waits_to_be_accepted() {
    let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listen(socket).unwrap();
    let address = listener.local_addr().unwrap();
    let connect = async || Client(TcpStream::connect(address).await.unwrap());
    let mut complete = connect().await;
    complete.send(HEALTHZ).await;
    let mut halfway = connect().await;
    halfway.send(&HEALTHZ[..HEALTHZ.len() - 1]).await;
    let mut about_to_speak = connect().await;
    let mut silent = connect().await;
    let mut gone = connect().await;
    gone.send(HEALTHZ).await;
    drop(gone);

    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    stop.cancel();
    let router = Router::new().route("/healthz", get(healthz));
    let limits = Limits {
        header_read_timeout: LONG,
        ..Limits::default()
    };
    let serving = serve(listener, router, limits, stop, tracker.clone());
    timeout(SOON, serving).await.unwrap();
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    about_to_speak.send(HEALTHZ).await;
    halfway.send(&HEALTHZ[HEALTHZ.len() - 1..]).await;
    for client in [&mut complete, &mut halfway, &mut about_to_speak] {
        let answer = client.rest().await;
        assert_ok(&answer);
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
    assert_eq!(silent.rest().await, "");
    tracker.close();
    timeout(SOON, tracker.wait()).await.unwrap();
}

/// R31: a request whose head has begun to come is in flight, also on a connection that had others before.
#[tokio::test]
async fn a_stop_finishes_a_head_that_has_begun() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send(HEALTHZ).await;
    assert_ok(&client.answer().await);
    client.send(&HEALTHZ[..20]).await;
    // Read, because a later connection is served.
    assert_ok(&server.ask(HEALTHZ).await);
    server.stop.cancel();
    timeout(SOON, async {
        while !server.accept_loop.is_finished() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    client.send(&HEALTHZ[20..]).await;
    assert_ok(&client.rest().await);
    server.drained().await;
}

/// R30: 404 and 405, the latter with the methods that the path takes (RFC 9110, section 15.5.6).
#[tokio::test]
async fn unknown_paths_and_methods_are_answered_as_problems() {
    let server = Server::start().await;
    let answer = server.ask("GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_problem(&answer, 404, "not_found");

    let answer = server.ask("GET /body HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_problem(&answer, 405, "method_not_allowed");
    assert!(answer.contains("allow: POST\r\n"), "{answer}");

    let answer = server
        .ask("BREW /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    assert_problem(&answer, 405, "method_not_allowed");
    assert!(answer.contains("allow: GET,HEAD\r\n"), "{answer}");
    server.drained().await;
}
