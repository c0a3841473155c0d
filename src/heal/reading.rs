//! Reads the events of a time, for the poll and by hand: window after window, page after page.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use tracing::{error, warn};

use super::HealError;
use super::window::{Refused, Window};
use crate::clock::Clock;
use crate::entities;
use crate::inbox::{Beside, EventName, Inbox, Source, StoredPage};
use crate::workos::{Page, ReadFrom, Trail, WorkosClient, WorkosError};

/// Who has a time read: how it asks WorkOS, and where it keeps what was read, and how far that goes.
pub(super) trait Reader {
    /// Asks for a page of a window.
    async fn ask(&self, from: ReadFrom<'_>, window: &Window) -> Result<Page, WorkosError>;

    /// A window is about to be read from its beginning.
    async fn begin(&mut self, window: &Window) -> Result<(), HealError>;

    /// Keeps a page of a window.
    async fn keep(&mut self, page: &Page, window: &Window) -> Result<(), HealError>;

    /// WorkOS shows nothing of a window any more.
    async fn skip(&mut self, window: &Window) -> Result<(), HealError>;
}

/// A reading that was broken off in a window, behind a page.
#[derive(Debug, Clone)]
pub(super) struct BrokenOff {
    pub(super) window: Window,
    pub(super) after: String,
}

/// Reads the events from a time on, up to `end` or all that there are; or goes on where it was broken off.
pub(super) async fn read(
    reader: &mut impl Reader,
    clock: &dyn Clock,
    from: DateTime<Utc>,
    end: Option<DateTime<Utc>>,
    broken_off: Option<BrokenOff>,
) -> Result<(), HealError> {
    let (mut trail, mut has_begun_anew) = (Trail::default(), false);
    let (mut window, mut after) = match broken_off {
        Some(BrokenOff { window, after }) => (window, Some(after)),
        None => (Window::at(from, end, clock.now()), None),
    };
    loop {
        if after.is_none() {
            reader.begin(&window).await?;
        }
        loop {
            let goes_on = after.is_some();
            let place = after
                .as_deref()
                .map_or(ReadFrom::Time(window.from), ReadFrom::After);
            let refusal = match reader.ask(place, &window).await {
                Ok(page) => {
                    reader.keep(&page, &window).await?;
                    after = page.after;
                    let Some(after) = &after else { break };
                    trail.go_on(after)?;
                    continue;
                }
                Err(refusal) => refusal,
            };
            match Refused::of(&refusal, &window, goes_on, has_begun_anew) {
                Refused::BeginAnew => {
                    warn!(
                        "WorkOS refuses where the reading of events was to go on, it begins anew: {refusal}"
                    );
                    (trail, has_begun_anew, after) = (Trail::default(), true, None);
                    reader.begin(&window).await?;
                }
                Refused::Skip => {
                    warn!(
                        "WorkOS refuses to show the events {window}, which are skipped: {refusal}"
                    );
                    reader.skip(&window).await?;
                    break;
                }
                Refused::Fail => return Err(refusal.into()),
            }
        }
        let Some(next) = window.next else {
            return Ok(());
        };
        window = Window::at(next, end, clock.now());
    }
}

/// Asks for a page of the events that are handled.
pub(super) async fn list_events(
    client: &WorkosClient,
    from: ReadFrom<'_>,
    window: &Window,
    now: DateTime<Utc>,
) -> Result<Page, WorkosError> {
    let types = entities::types_of_workos().collect::<Vec<_>>();
    client.list_events(&types, from, window.until, now).await
}

/// Stores the events of a page that are handled; what else the answer holds is left out.
pub(super) async fn store_page(
    inbox: &Inbox,
    elements: &[Box<RawValue>],
    source: Source,
    beside: &impl Beside<Error = HealError>,
) -> Result<StoredPage, HealError> {
    let mut events = Vec::with_capacity(elements.len());
    for element in elements {
        let body = element.get().as_bytes().to_vec();
        match inbox.read(body, None, source) {
            Ok(event) if event.is_handled() => events.push(event),
            Ok(_) => {}
            Err(reason) => error!("WorkOS lists an event that is none, it is left out: {reason}"),
        }
    }
    let stored = inbox.record_page(events, beside).await?;
    for (event, reason) in &stored.unstorable {
        let EventName {
            id,
            event_type,
            organization,
        } = event;
        error!(
            event.id = id,
            event.r#type = event_type,
            workos.organization_id = organization,
            "{event_type} {id} can't be stored, it is left out: {reason}"
        );
    }
    Ok(stored)
}
