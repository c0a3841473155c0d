//! Pages of lists, and single objects, as WorkOS shows them: each with its text, and when it was shown.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::Method;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::value::RawValue;
use url::Url;

use super::{Endpoint, WorkosClient, WorkosError, shorten, unavailable};
use crate::event::{WorkosId, rfc3339};

/// How many elements a page has: the most that WorkOS gives.
pub const PAGE_ELEMENTS: usize = 100;

/// When WorkOS answered, and how long that took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// The `Date` of the answer: WorkOS's time, in whole seconds. `None` if missing or unreadable.
    pub date: Option<DateTime<Utc>>,
    /// How long the request took, to the last byte of the answer.
    pub took: Duration,
}

/// A page of a list.
#[derive(Debug)]
pub struct Page {
    /// The elements, each as it stands in the answer.
    pub elements: Vec<Box<RawValue>>,
    /// Where the next page begins; `None` at the end.
    pub after: Option<String>,
    /// When it was shown.
    pub answered: Answered,
}

/// A page of the webhook endpoints.
#[derive(Debug)]
pub struct WebhookEndpoints {
    /// The endpoints.
    pub endpoints: Vec<WebhookEndpoint>,
    /// Where the next page begins; `None` at the end.
    pub after: Option<String>,
}

/// A webhook endpoint, as WorkOS knows it.
#[derive(Debug, Clone)]
pub struct WebhookEndpoint {
    /// Such as `we_…`.
    pub id: String,
    /// Where it delivers to.
    pub url: String,
    /// Whether it does.
    pub enabled: bool,
    /// The types of the events that it delivers.
    pub events: Vec<String>,
    /// What it signs with, if WorkOS shows that.
    pub secret: Option<SecretString>,
}

/// An object.
#[derive(Debug)]
pub struct Object {
    /// As it stands in the answer.
    pub text: Box<RawValue>,
    /// When it was shown.
    pub answered: Answered,
}

/// What asking for an organization came to.
#[derive(Debug)]
pub enum Lookup {
    /// There it is.
    Found(Object),
    /// 404: the key's environment has none of this id, or none any more.
    Gone(Answered),
}

/// Where a reading of events begins or goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom<'a> {
    /// At a time.
    Time(DateTime<Utc>),
    /// Behind the last page: what its [`Page::after`] says.
    After(&'a str),
}

/// Other keys are ignored (R13).
#[derive(Deserialize)]
struct RawPage {
    data: Vec<Box<RawValue>>,
    #[serde(default)]
    list_metadata: Option<RawMetadata>,
}

#[derive(Deserialize)]
struct RawWebhookEndpoint {
    #[serde(default)]
    id: String,
    endpoint_url: String,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    events: Vec<String>,
    #[serde(default)]
    secret: Option<SecretString>,
}

#[derive(Deserialize)]
struct RawMetadata {
    #[serde(default)]
    after: Option<String>,
}

impl WorkosClient {
    /// A page of the environment's organizations, the oldest first: what is made meanwhile comes at the end.
    ///
    /// # Errors
    /// WorkOS answers something else than a page, or nothing. [`WorkosError::Rejected`]: it doesn't take `after`.
    pub async fn list_organizations(
        &self,
        after: Option<&str>,
        now: DateTime<Utc>,
    ) -> Result<Page, WorkosError> {
        let mut url = self.url("organizations");
        url.query_pairs_mut()
            .append_pair("limit", &PAGE_ELEMENTS.to_string())
            .append_pair("order", "asc")
            .extend_pairs(after.map(|after| ("after", after)));
        self.page(Endpoint::ListOrganizations, url, after, now)
            .await
    }

    /// A page of the events of these types, up to a time. WorkOS gives the oldest first, whatever it is asked for, but
    /// not in order within a page; it may give other types too.
    ///
    /// # Errors
    /// WorkOS answers something else than a page, or nothing. [`WorkosError::Rejected`]: it doesn't take where the reading
    /// is to begin.
    pub async fn list_events(
        &self,
        types: &[&str],
        from: ReadFrom<'_>,
        until: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Result<Page, WorkosError> {
        let mut url = self.url("events");
        let after = match from {
            ReadFrom::Time(_) => None,
            ReadFrom::After(after) => Some(after),
        };
        let start = match from {
            ReadFrom::Time(start) => Some(start),
            // WorkOS takes one of the two.
            ReadFrom::After(_) => None,
        };
        url.query_pairs_mut()
            .append_pair("events", &types.join(","))
            .append_pair("limit", &PAGE_ELEMENTS.to_string())
            .append_pair("order", "asc")
            .extend_pairs(start.map(|start| ("range_start", rfc3339(start))))
            .extend_pairs(until.map(|until| ("range_end", rfc3339(until))))
            .extend_pairs(after.map(|after| ("after", after)));
        self.page(Endpoint::ListEvents, url, after, now).await
    }

    /// A page of the environment's webhook endpoints, with their secrets.
    ///
    /// # Errors
    /// WorkOS answers something else than a page, or nothing.
    pub async fn list_webhook_endpoints(
        &self,
        after: Option<&str>,
        now: DateTime<Utc>,
    ) -> Result<WebhookEndpoints, WorkosError> {
        let mut url = self.url("webhook_endpoints");
        url.query_pairs_mut()
            .append_pair("limit", &PAGE_ELEMENTS.to_string())
            .extend_pairs(after.map(|after| ("after", after)));
        let page = self
            .page(Endpoint::ListWebhookEndpoints, url, after, now)
            .await?;
        let endpoint = |element: Box<RawValue>| {
            let raw: RawWebhookEndpoint = serde_json::from_str(element.get()).map_err(|error| {
                // Its text isn't repeated: it may be that of the secret.
                let (line, column) = (error.line(), error.column());
                unavailable(format!(
                    "what it lists is no webhook endpoint (line {line}, column {column})"
                ))
            })?;
            Ok(WebhookEndpoint {
                id: shorten(&raw.id),
                url: shorten(&raw.endpoint_url),
                enabled: raw.status.is_none_or(|status| status == "enabled"),
                events: raw.events,
                secret: raw.secret,
            })
        };
        Ok(WebhookEndpoints {
            endpoints: page
                .elements
                .into_iter()
                .map(endpoint)
                .collect::<Result<_, WorkosError>>()?,
            after: page.after,
        })
    }

    /// Looks an organization up.
    ///
    /// # Errors
    /// WorkOS answers something else, or nothing.
    pub async fn look_up(&self, id: &WorkosId, now: DateTime<Utc>) -> Result<Lookup, WorkosError> {
        let endpoint = Endpoint::GetOrganization;
        let request = self.http.request(Method::GET, self.organization_url(id)?);
        let response = self.ask(endpoint, request).await?;
        let answered = |took| Answered {
            date: response.date,
            took,
        };
        let started = response.started;
        match self.read(endpoint, response.http, now).await {
            Ok(body) => {
                let text = serde_json::from_slice(&body).map_err(|error| {
                    unavailable(self.shorten(&format!("the answer is no organization: {error}")))
                })?;
                Ok(Lookup::Found(Object {
                    text,
                    answered: answered(started.elapsed()),
                }))
            }
            Err(WorkosError::NotFound) => Ok(Lookup::Gone(answered(started.elapsed()))),
            Err(error) => Err(error),
        }
    }

    async fn page(
        &self,
        endpoint: Endpoint,
        url: Url,
        after: Option<&str>,
        now: DateTime<Utc>,
    ) -> Result<Page, WorkosError> {
        let request = self.http.request(Method::GET, url);
        let (body, answered) = self.send(endpoint, request, now).await?;
        let page: RawPage = serde_json::from_slice(&body).map_err(|error| {
            unavailable(self.shorten(&format!("the answer is no page of a list: {error}")))
        })?;
        let next = page.list_metadata.and_then(|metadata| metadata.after);
        let next = next.filter(|next| !next.is_empty());
        if next.is_some() && next.as_deref() == after {
            let reason = "it says that the next page begins where this one does".to_owned();
            return Err(unavailable(reason));
        }
        Ok(Page {
            elements: page.data,
            after: next,
            answered,
        })
    }
}
