//! What WorkOS's answer to a delivery means. No I/O.

use std::time::Duration;

use crate::event::OrganizationId;
use crate::workos::{WorkosError, shorten};

/// What a delivery found or did in WorkOS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pushed {
    /// The organization had no `external_id`, and has ours now.
    Written,
    /// The organization has this `external_id`, which was left alone.
    Held(String),
}

/// What becomes of an intention.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It ends.
    Finish(Ending),
    /// WorkOS refuses us, whichever organization we ask about: all intentions wait, and nothing counts against this
    /// one.
    Pause(WorkosError),
    /// WorkOS fails: all intentions wait, and this one is tried again. Whether the failure counts against it, the pace
    /// tells: it doesn't while WorkOS fails everybody.
    Retry(WorkosError),
}

/// How an intention ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// WorkOS holds the organization id, since now.
    Written,
    /// WorkOS held the organization id already.
    AlreadyThere,
    /// WorkOS holds another `external_id`; the reason names both.
    Conflict(String),
    /// WorkOS gave a final no, for this reason.
    Rejected(String),
}

impl Ending {
    /// The status that the intention ends with.
    pub(super) const fn status(&self) -> &'static str {
        match self {
            Self::Written | Self::AlreadyThere => "done",
            Self::Conflict(_) => "conflict",
            Self::Rejected(_) => "rejected",
        }
    }

    /// Why WorkOS doesn't hold the organization id.
    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::Written | Self::AlreadyThere => None,
            Self::Conflict(reason) | Self::Rejected(reason) => Some(reason),
        }
    }
}

/// How long to wait after a 401 or 403. A key is replaced by a restart, but it can be given a permission, or WorkOS can
/// be mistaken.
const UNAUTHORIZED_PAUSE: Duration = Duration::from_mins(1);

/// What the answer to the delivery of `id` means (R15, R16); `is_ours` says whether what WorkOS holds is that id.
pub(super) fn verdict(
    answer: Result<Pushed, WorkosError>,
    id: &OrganizationId,
    is_ours: impl FnOnce(&str) -> bool,
) -> Verdict {
    match answer {
        Ok(Pushed::Written) => Verdict::Finish(Ending::Written),
        Ok(Pushed::Held(held)) if is_ours(&held) => Verdict::Finish(Ending::AlreadyThere),
        Ok(Pushed::Held(held)) => {
            let held = shorten(&held);
            Verdict::Finish(Ending::Conflict(format!(
                "WorkOS holds external_id {held}, which is not overwritten with {id}"
            )))
        }
        Err(refusal @ WorkosError::NotFound) => Verdict::Finish(Ending::Rejected(format!(
            "{refusal}: it was deleted meanwhile, it comes from a sample event of the dashboard, or WORKOS_API_KEY \
             belongs to another environment"
        ))),
        Err(refusal @ (WorkosError::ExternalIdAlreadyUsed | WorkosError::Rejected { .. })) => {
            Verdict::Finish(Ending::Rejected(refusal.to_string()))
        }
        Err(refusal @ (WorkosError::Unauthorized { .. } | WorkosError::RateLimited { .. })) => {
            Verdict::Pause(refusal)
        }
        Err(failure @ WorkosError::Unavailable { .. }) => Verdict::Retry(failure),
    }
}

/// How long the trouble wants to be waited for; `None` leaves it to the pace.
pub(super) fn asked_pause(trouble: &WorkosError) -> Option<Duration> {
    match trouble {
        WorkosError::Unauthorized { .. } => Some(UNAUTHORIZED_PAUSE),
        WorkosError::RateLimited { retry_after } | WorkosError::Unavailable { retry_after, .. } => {
            *retry_after
        }
        WorkosError::NotFound
        | WorkosError::ExternalIdAlreadyUsed
        | WorkosError::Rejected { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(status: u16) -> WorkosError {
        WorkosError::Rejected {
            status,
            message: "odd".to_owned(),
        }
    }

    /// R15, R16: each answer, and what becomes of the intention.
    #[test]
    fn an_answer_means_an_ending_a_pause_or_another_try() {
        let id = OrganizationId::new("acme").unwrap();
        let is_ours = |held: &str| held == "acme";
        for (answer, status, reason) in [
            (Ok(Pushed::Written), "done", ""),
            (Ok(Pushed::Held("acme".to_owned())), "done", ""),
            (
                Ok(Pushed::Held("Acme\0".to_owned())),
                "conflict",
                "WorkOS holds external_id Acme , which is not overwritten with acme",
            ),
            (
                Err(WorkosError::ExternalIdAlreadyUsed),
                "rejected",
                "another WorkOS organization has this external_id (external_id_already_used)",
            ),
            (
                Err(rejected(422)),
                "rejected",
                "WorkOS refuses the request (422): odd",
            ),
        ] {
            let Verdict::Finish(ending) = verdict(answer.clone(), &id, is_ours) else {
                panic!("{answer:?}");
            };
            assert_eq!(ending.status(), status, "{answer:?}");
            assert_eq!(ending.reason().unwrap_or_default(), reason, "{answer:?}");
        }
        let Verdict::Finish(Ending::Rejected(reason)) =
            verdict(Err(WorkosError::NotFound), &id, is_ours)
        else {
            panic!("a 404 is final");
        };
        assert!(reason.contains("another environment"), "{reason}");

        for refusal in [
            WorkosError::Unauthorized { status: 401 },
            WorkosError::RateLimited { retry_after: None },
        ] {
            assert_eq!(
                verdict(Err(refusal.clone()), &id, is_ours),
                Verdict::Pause(refusal)
            );
        }
        let failure = WorkosError::Unavailable {
            reason: "it answered 503".to_owned(),
            retry_after: None,
        };
        assert_eq!(
            verdict(Err(failure.clone()), &id, is_ours),
            Verdict::Retry(failure)
        );
    }

    /// R16: `Retry-After` is honoured; a refused key isn't asked about more than once a minute.
    #[test]
    fn trouble_asks_for_its_pause() {
        let seven = Some(Duration::from_secs(7));
        for (trouble, asked) in [
            (WorkosError::RateLimited { retry_after: seven }, seven),
            (WorkosError::RateLimited { retry_after: None }, None),
            (
                WorkosError::Unavailable {
                    reason: "it answered 503".to_owned(),
                    retry_after: seven,
                },
                seven,
            ),
            (
                WorkosError::Unauthorized { status: 403 },
                Some(Duration::from_mins(1)),
            ),
        ] {
            assert_eq!(asked_pause(&trouble), asked, "{trouble}");
        }
    }
}
