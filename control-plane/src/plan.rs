//! The limits of a plan on what an app may run. Pure: the caller says what is wanted and gets the rule
//! that it breaks, in words a developer can act on.

use mogok_api::app::Plan;
use mogok_api::control::Formation;
use mogok_api::name::ProcessType;

/// What a plan does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverPlan {
    #[error("the {} plan allows {limit} app{}", name(*plan), plural(*limit))]
    Apps { plan: Plan, limit: u32 },
    #[error(
        "{kind}={count} is over the limit of the {} plan: {limit} instance{} of each process type",
        name(*plan), plural(*limit)
    )]
    Instances { plan: Plan, kind: ProcessType, count: u32, limit: u32 },
    #[error("{kind}={count} is over the limit of the {} plan: it runs web processes only", name(*plan))]
    Workers { plan: Plan, kind: ProcessType, count: u32 },
}

/// The plan as people call it.
#[must_use]
pub fn name(plan: Plan) -> &'static str {
    match plan {
        Plan::Free => "free",
        Plan::Paid => "paid",
    }
}

/// The plan of this name.
///
/// # Errors
/// When there is none.
pub fn parse(text: &str) -> Result<Plan, String> {
    [Plan::Free, Plan::Paid]
        .into_iter()
        .find(|plan| name(*plan) == text)
        .ok_or_else(|| format!("no plan {text:?}: use free or paid"))
}

fn plural(count: u32) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// What has an app run that has these process types and none of them `web`.
pub fn without_web<'a>(plan: Plan, has: impl IntoIterator<Item = &'a ProcessType>) -> String {
    match has.into_iter().find(|kind| kind.as_str() != "release") {
        Some(kind) if plan.workers() => format!("mogok scale {kind}=1, then mogok start"),
        _ => format!(
            "the {} plan runs web processes only: add one to the Procfile, or ask the operator for the paid plan",
            name(plan)
        ),
    }
}

/// May an account on this plan run this formation?
///
/// # Errors
/// The first process type that is over a limit.
pub fn check_formation(plan: Plan, formation: &Formation) -> Result<(), OverPlan> {
    for (kind, &count) in formation {
        if count > 0 && !kind.is_web() && !plan.workers() {
            return Err(OverPlan::Workers { plan, kind: kind.clone(), count });
        }
        let limit = plan.max_instances();
        if count > limit {
            return Err(OverPlan::Instances { plan, kind: kind.clone(), count, limit });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formation(text: &[(&str, u32)]) -> Formation {
        text.iter().map(|(kind, count)| (kind.parse().unwrap(), *count)).collect()
    }

    #[test]
    fn the_free_plan_runs_one_web_process() {
        assert_eq!(check_formation(Plan::Free, &formation(&[("web", 1), ("worker", 0)])), Ok(()));
        let two = check_formation(Plan::Free, &formation(&[("web", 2)])).unwrap_err();
        assert_eq!(
            two.to_string(),
            "web=2 is over the limit of the free plan: 1 instance of each process type"
        );
        let worker = check_formation(Plan::Free, &formation(&[("worker", 1)])).unwrap_err();
        assert!(worker.to_string().contains("web processes only"), "{worker}");
    }

    #[test]
    fn who_has_workers_only_hears_what_the_plan_allows() {
        let kinds: Vec<ProcessType> = ["release", "worker"].map(|kind| kind.parse().unwrap()).into();
        assert_eq!(without_web(Plan::Paid, &kinds), "mogok scale worker=1, then mogok start");
        let free = without_web(Plan::Free, &kinds);
        assert!(free.contains("the free plan runs web processes only") && !free.contains("scale"), "{free}");
    }

    #[test]
    fn the_paid_plan_runs_five_of_each() {
        assert_eq!(check_formation(Plan::Paid, &formation(&[("web", 5), ("worker", 5)])), Ok(()));
        assert!(check_formation(Plan::Paid, &formation(&[("worker", 6)])).is_err());
    }
}
