//! A WorkOS that lists organizations, and a bare client that reads its list: the limit that the list sets.
//!
//! Its pages are made beforehand, so that it takes little from what it is to measure.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// As many as WorkOS gives.
const PAGE: usize = 100;

/// An organization, as far as one differs from the other.
#[derive(Debug, Clone)]
pub(crate) struct Organization {
    pub(crate) workos_id: String,
    pub(crate) name: String,
    pub(crate) external_id: Option<String>,
}

impl Organization {
    /// About as long as WorkOS's own.
    fn json(&self) -> String {
        let Self {
            workos_id, name, ..
        } = self;
        let external_id = match &self.external_id {
            Some(id) => format!("\"{id}\""),
            None => "null".to_owned(),
        };
        format!(
            r#"{{"object":"organization","id":"{workos_id}","name":"{name}","allow_profiles_outside_organization":false,"domains":[{{"object":"organization_domain","id":"org_domain_01EHWNCE74X7JSDV0X3SZ3KJNY","organization_id":"{workos_id}","domain":"example.com","state":"verified","verification_strategy":"dns","verification_token":"m5Oztg3jdK4NJLgs8uIlIprMw","created_at":"2026-01-01T00:00:00.000Z","updated_at":"2026-01-01T00:00:00.000Z"}}],"metadata":{{"tier":"diamond"}},"external_id":{external_id},"stripe_customer_id":null,"created_at":"2026-01-01T00:00:00.000Z","updated_at":"2026-01-01T00:00:00.000Z"}}"#
        )
    }
}

/// A running one; gone when dropped.
#[derive(Debug)]
pub(crate) struct Workos {
    address: SocketAddr,
    _server: JoinSet<()>,
}

#[derive(Debug)]
struct List {
    /// By the id behind which each begins; the first one's is empty.
    pages: HashMap<String, Bytes>,
    answers_after: Duration,
}

impl Workos {
    /// Starts one that answers a request after so long.
    pub(crate) async fn start(
        organizations: &[Organization],
        answers_after: Duration,
    ) -> anyhow::Result<Self> {
        let list = Arc::new(List {
            pages: pages(organizations),
            answers_after,
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let app = Router::new().fallback(answer).with_state(list);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self {
            address,
            _server: server,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Reads the list as fast as one that does nothing else can; says how long that took.
    pub(crate) async fn list(&self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let mut stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let mut after = String::new();
        loop {
            let request = format!(
                "GET /organizations?limit={PAGE}&order=asc&after={after} HTTP/1.1\r\nHost: {}\r\n\r\n",
                self.address
            );
            stream.write_all(request.as_bytes()).await?;
            let page = read_answer(&mut stream).await?;
            match next(&page)? {
                Some(next) => after = next,
                None => return Ok(started.elapsed()),
            }
        }
    }
}

fn pages(organizations: &[Organization]) -> HashMap<String, Bytes> {
    let mut pages = HashMap::new();
    let mut behind = String::new();
    let mut rest = organizations.chunks(PAGE).peekable();
    while let Some(page) = rest.next() {
        let data: Vec<_> = page.iter().map(Organization::json).collect();
        let last = page.last().map(|last| last.workos_id.clone());
        let after = last.clone().filter(|_| rest.peek().is_some());
        let after = after.map_or_else(|| "null".to_owned(), |after| format!("\"{after}\""));
        let body = format!(
            r#"{{"object":"list","data":[{}],"list_metadata":{{"before":null,"after":{after}}}}}"#,
            data.join(",")
        );
        pages.insert(behind, Bytes::from(body));
        behind = last.unwrap_or_default();
    }
    pages
}

async fn answer(State(list): State<Arc<List>>, uri: Uri) -> Response {
    if !list.answers_after.is_zero() {
        sleep(list.answers_after).await;
    }
    let body = if uri.path() == "/organizations" {
        let mut parameters = uri.query().unwrap_or_default().split('&');
        let after = parameters.find_map(|parameter| parameter.strip_prefix("after="));
        list.pages.get(after.unwrap_or_default()).cloned()
    } else {
        // Whoever asks for one wants to know whether it is there.
        let id = uri.path().strip_prefix("/organizations/");
        id.map(|id| Bytes::from(format!(r#"{{"object":"organization","id":"{id}"}}"#)))
    };
    match body {
        Some(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        None => StatusCode::BAD_REQUEST.into_response(),
    }
}

/// The body of an answer, which says how long it is.
async fn read_answer(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let mut answer = Vec::new();
    loop {
        let read = stream.read_buf(&mut answer).await?;
        ensure!(read > 0, "half an answer");
        let Some(end) = find(&answer, b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        ensure!(head.starts_with("http/1.1 200"), "{head}");
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
            .context("an answer without a length")?;
        let body = end + 4;
        if answer.len() < body + length {
            let missing = body + length - answer.len();
            answer.reserve(missing);
            let already = answer.len();
            answer.resize(body + length, 0);
            stream.read_exact(&mut answer[already..]).await?;
        }
        return Ok(answer.split_off(body));
    }
}

/// Where the next page begins: the page ends with it.
fn next(page: &[u8]) -> anyhow::Result<Option<String>> {
    let from = page.len().saturating_sub(100);
    let end = String::from_utf8_lossy(&page[from..]);
    let (_, after) = end.rsplit_once(r#""after":"#).context("no page")?;
    let after = after.trim_end_matches('}').trim_matches('"');
    Ok(Some(after.to_owned()).filter(|after| after != "null"))
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_list_is_read_to_its_end() {
        let organizations: Vec<_> = (0..250)
            .map(|n| Organization {
                workos_id: format!("org_{n}"),
                name: format!("Organization {n}"),
                external_id: Some(n.to_string()),
            })
            .collect();
        let pages = pages(&organizations);
        let next = |behind: &str| next(&pages[behind]).unwrap();
        assert_eq!(next("").as_deref(), Some("org_99"));
        assert_eq!(next("org_99").as_deref(), Some("org_199"));
        assert_eq!(next("org_199"), None);
        let wait = Duration::from_millis(20);
        let workos = Workos::start(&organizations, wait).await.unwrap();
        assert!(workos.list().await.unwrap() >= wait * 3);
    }
}
