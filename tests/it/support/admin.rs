//! The admin listener's routes, beside an application.

use axum::Router;
use axum::body::Body;
use axum::http::request::Builder;
use axum::http::{Method, Request};
use secrecy::SecretString;
use workos_sync::admin::{self, Admin};

use super::TestApp;
use super::app::Answer;

/// The token where a test wants one.
pub(crate) const TOKEN: &str = "s3cr3t-of-the-admin";

/// The host that is asked.
const HOST: &str = "localhost:8081";

/// The page and the API.
#[derive(Clone)]
pub(crate) struct TestAdmin(Router);

impl TestAdmin {
    /// Without a token.
    pub(crate) fn open(app: &TestApp) -> Self {
        Self::with(app, None, false)
    }

    /// With [`TOKEN`].
    pub(crate) fn guarded(app: &TestApp) -> Self {
        Self::with(app, Some(TOKEN.into()), false)
    }

    pub(crate) fn with(app: &TestApp, token: Option<SecretString>, read_only: bool) -> Self {
        let options = admin::Options {
            database: app.db.options.clone(),
            database_name: "app at db.internal".to_owned(),
            host: app.host.clone(),
            token,
            read_only,
        };
        Self(admin::router(Admin::new(app.clock.clone(), options)))
    }

    /// A request to the host that it is on.
    pub(crate) fn request(method: Method, path: &str) -> Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header("host", HOST)
    }

    pub(crate) async fn send(&self, request: Builder, body: impl Into<Body>) -> Answer {
        Answer::of(&self.0, request.body(body.into()).unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Self::request(Method::GET, path), Body::empty())
            .await
    }

    /// A POST as curl makes one.
    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.send(Self::request(Method::POST, path), body.to_owned())
            .await
    }

    /// A form, sent by the page itself.
    pub(crate) async fn submit(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let request = Self::request(Method::POST, path)
            .header("origin", format!("http://{HOST}"))
            .header("sec-fetch-site", "same-origin");
        self.send(request, body).await
    }
}
