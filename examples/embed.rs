//! `workos-sync` inside an application that has a router, a fallback and a health check of its own.
//!
//! ```sh
//! DATABASE_URL=postgres://… WORKOS_WEBHOOK_SECRET=… cargo run --example embed
//! ```

use std::error::Error;
use std::future::IntoFuture;
use std::pin::pin;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use secrecy::SecretString;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use workos_sync::WorkosSync;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let pool = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    let secret = std::env::var("WORKOS_WEBHOOK_SECRET")?;
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    let stop = CancellationToken::new();
    let ctrl_c = async {
        tokio::signal::ctrl_c().await?;
        stop.cancel();
        Ok(())
    };
    tokio::try_join!(serve(pool, secret.into(), listener, stop.clone()), ctrl_c)?;
    Ok(())
}

/// Serves the application and the webhook until `stop` is cancelled.
pub(crate) async fn serve(
    pool: PgPool,
    secret: SecretString,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), Box<dyn Error>> {
    let sync = WorkosSync::builder(pool)
        .webhook_secret(secret)
        .build()
        .await?;
    let app = Router::new()
        .route("/", get(async || "the application"))
        .route("/healthz", get(async || "the application is well"))
        .fallback(async || (StatusCode::NOT_FOUND, "the application has no such page"))
        .merge(sync.webhook_router())
        // Under a path of their own: the application has a /healthz.
        .nest("/workos-sync", sync.probes_router());

    let no_more_requests = CancellationToken::new();
    let mut background = pin!(sync.run(no_more_requests.clone()));
    let requests = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned());
    tokio::select! {
        served = requests.into_future() => served?,
        ended = &mut background => return Ok(ended?),
    }
    // Every delivery has its answer; what they brought is applied, or stays in the inbox.
    no_more_requests.cancel();
    Ok(background.await?)
}
