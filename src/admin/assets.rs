//! What the page consists of beside HTML: embedded, and named by its content, so that a browser may keep it.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::http::problem::Problem;

/// Where assets are.
pub(super) const PREFIX: &str = "/assets/";

/// An asset, and the name that its content gives it.
#[derive(Debug)]
pub(super) struct Asset {
    content: &'static str,
    media_type: &'static str,
    /// The path, which changes with the content.
    pub(super) path: String,
    etag: String,
}

impl Asset {
    fn new(name: &str, extension: &str, media_type: &'static str, content: &'static str) -> Self {
        let hash = hex::encode(Sha256::digest(content));
        let hash = &hash[..16];
        Self {
            content,
            media_type,
            path: format!("{PREFIX}{name}.{hash}.{extension}"),
            etag: format!("\"{hash}\""),
        }
    }
}

pub(super) static STYLE: LazyLock<Asset> = LazyLock::new(|| {
    let content = include_str!("assets/page.css");
    Asset::new("page", "css", "text/css; charset=utf-8", content)
});

pub(super) static SCRIPT: LazyLock<Asset> = LazyLock::new(|| {
    let content = include_str!("assets/page.js");
    Asset::new("page", "js", "text/javascript; charset=utf-8", content)
});

pub(super) static ICON: LazyLock<Asset> = LazyLock::new(|| {
    let content = include_str!("assets/icon.svg");
    Asset::new("icon", "svg", "image/svg+xml", content)
});

/// `GET /assets/{name}`.
pub(super) async fn serve(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let all = [&STYLE, &SCRIPT, &ICON];
    let found = all
        .into_iter()
        .find(|asset| asset.path.strip_prefix(PREFIX) == Some(&name));
    let Some(asset) = found else {
        return Problem::not_found().into_response();
    };
    let kept = [
        // Another content has another name.
        (CACHE_CONTROL, "public, max-age=31536000, immutable"),
        (ETAG, &asset.etag),
    ];
    let known = headers.get_all(IF_NONE_MATCH).iter().any(|known| {
        let known = known.to_str().unwrap_or_default();
        known
            .split(',')
            .any(|known| known.trim().trim_start_matches("W/") == asset.etag)
    });
    if known {
        return (StatusCode::NOT_MODIFIED, kept).into_response();
    }
    let media_type = [(CONTENT_TYPE, HeaderValue::from_static(asset.media_type))];
    (kept, media_type, asset.content).into_response()
}
