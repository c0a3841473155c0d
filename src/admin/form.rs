//! Parameters: of a URL's query, or of a form.

use std::time::Duration;

use axum::body::Body;
use tokio::time::Instant;
use url::form_urlencoded;

use crate::http::body::read_body;
use crate::http::problem::Problem;

/// The longest body: some ten thousand ids.
const MAX_BODY_BYTES: usize = 512 * 1_024;

/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Names and values, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Reads a query, or the body of a form.
    pub(super) fn parse(text: &[u8]) -> Self {
        Self(form_urlencoded::parse(text).into_owned().collect())
    }

    /// The same, without the fields that a person has left empty.
    pub(super) fn filled(text: &[u8]) -> Self {
        let mut parameters = Self::parse(text);
        parameters.0.retain(|(_, value)| !value.trim().is_empty());
        parameters
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    /// All values of one name.
    pub(super) fn all(&self, name: &str) -> Vec<String> {
        let named = self.iter().filter(|(known, _)| *known == name);
        named.map(|(_, value)| value.to_owned()).collect()
    }

    /// Those without these.
    pub(super) fn without(&self, names: &[&str]) -> Self {
        let others = self.iter().filter(|(name, _)| !names.contains(name));
        Self(
            others
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A path with these as its query.
    pub(super) fn on(&self, path: &str) -> String {
        if self.is_empty() {
            return path.to_owned();
        }
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(&self.0)
            .finish();
        format!("{path}?{query}")
    }
}

/// Reads the whole body.
pub(super) async fn body(body: Body) -> Result<Vec<u8>, Problem> {
    read_body(body, MAX_BODY_BYTES, Instant::now() + BODY_TIMEOUT).await
}
