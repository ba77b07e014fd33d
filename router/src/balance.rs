//! Which instance gets the request: of two chosen at random the one with less in flight ("power of
//! two choices"), which needs no shared counter and does not herd. Pure but for the instances'
//! own counts; the randomness is an argument.

use std::sync::Arc;

use crate::fault::Fault;
use crate::instance::Instance;

/// The most instances that one request may have tried; more are not kept apart.
pub const MAX_TRIED: usize = 3;

/// What an instance may carry.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub connections: usize,
    pub backlog: usize,
}

/// Chooses among `instances`, without those in `tried`.
///
/// # Errors
/// [`Fault::AllSetAside`], [`Fault::ConnectionLimit`] or [`Fault::Backlog`]: why none can be had.
/// `instances` must not be empty.
pub fn choose<'a>(
    instances: &'a [Arc<Instance>],
    tried: &[Arc<Instance>],
    limits: Limits,
    random: u64,
) -> Result<&'a Arc<Instance>, Fault> {
    let only = instances.len() == 1;
    // An only instance is never set aside: there is nowhere else to go, and trying costs a refusal.
    let aside = |instance: &Arc<Instance>| {
        (!only && instance.is_aside()) || tried.iter().any(|other| Arc::ptr_eq(other, instance))
    };
    let free = |instance: &Arc<Instance>| {
        instance.in_flight() < limits.connections && instance.waiting() < limits.backlog
    };
    let usable = |instance: &Arc<Instance>| !aside(instance) && free(instance);

    let count = instances.iter().filter(|instance| usable(instance)).count();
    if count == 0 {
        let mut carrying = instances.iter().filter(|instance| !aside(instance));
        return Err(match carrying.next() {
            None => Fault::AllSetAside,
            Some(instance) if instance.in_flight() >= limits.connections => Fault::ConnectionLimit,
            Some(_) => Fault::Backlog,
        });
    }
    let nth = |n: usize| instances.iter().filter(|instance| usable(instance)).nth(n);
    let one = (random & 0xffff_ffff) as usize % count;
    // Counts may have moved since: then the first that was asked for is gone and any will do.
    let first = nth(one).or_else(|| nth(0)).ok_or(Fault::Backlog)?;
    if count == 1 {
        return Ok(first);
    }
    let other = (one + 1 + (random >> 32) as usize % (count - 1)) % count;
    let second = nth(other).unwrap_or(first);
    Ok(if second.in_flight() < first.in_flight() { second } else { first })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mogok_api::id::InstanceId;
    use mogok_api::route::Upstream;
    use tokio::sync::Notify;

    use super::*;
    use crate::instance::Ticket;

    const LIMITS: Limits = Limits { connections: 4, backlog: 3 };

    fn instances(count: u32) -> Vec<Arc<Instance>> {
        (1..=count)
            .map(|index| {
                let upstream = Upstream {
                    instance: InstanceId::new(),
                    process: format!("web.{index}").parse().unwrap(),
                    address: ([127, 0, 0, 1], 1).into(),
                };
                Arc::new(Instance::new(&upstream, Arc::new(Notify::new())))
            })
            .collect()
    }

    #[test]
    fn the_less_loaded_of_two_is_taken() {
        let two = instances(2);
        let _busy = Ticket::take(&two[0]).unwrap();
        for random in 0..16 {
            assert!(Arc::ptr_eq(choose(&two, &[], LIMITS, random).unwrap(), &two[1]));
        }
    }

    #[test]
    fn load_spreads_evenly() {
        let four = instances(4);
        let limits = Limits { connections: 1000, backlog: 1000 };
        let mut random = 7_u64;
        let mut tickets = Vec::new();
        for _ in 0..400 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            tickets.push(Ticket::take(choose(&four, &[], limits, random ^ (random >> 29)).unwrap()).unwrap());
        }
        for instance in &four {
            assert!((90..=110).contains(&instance.in_flight()), "{}", instance.in_flight());
        }
    }

    #[test]
    fn those_aside_tried_or_full_are_passed_over() {
        let two = instances(2);
        two[0].set_aside(Duration::from_secs(60));
        for random in 0..8 {
            assert!(Arc::ptr_eq(choose(&two, &[], LIMITS, random).unwrap(), &two[1]));
        }
        assert_eq!(choose(&two, &two[1..], LIMITS, 0).err(), Some(Fault::AllSetAside));
        let mut tickets: Vec<_> = (0..3).filter_map(|_| Ticket::take(&two[1])).collect();
        assert_eq!(choose(&two, &[], LIMITS, 0).err(), Some(Fault::Backlog));
        tickets.iter_mut().for_each(Ticket::answered);
        assert!(choose(&two, &[], LIMITS, 0).is_ok());
        tickets.extend(Ticket::take(&two[1]));
        assert_eq!(choose(&two, &[], LIMITS, 0).err(), Some(Fault::ConnectionLimit));
    }

    #[test]
    fn an_only_instance_is_tried_even_when_set_aside() {
        let one = instances(1);
        one[0].set_aside(Duration::from_secs(60));
        assert!(choose(&one, &[], LIMITS, 0).is_ok());
        assert_eq!(choose(&one, &one, LIMITS, 0).err(), Some(Fault::AllSetAside));
    }

    #[test]
    fn a_retired_instance_takes_no_request_and_counts_those_it_has() {
        let one = instances(1);
        let ticket = Ticket::take(&one[0]).unwrap();
        one[0].retire();
        assert!(Ticket::take(&one[0]).is_none());
        assert_eq!(one[0].in_flight(), 1);
        drop(ticket);
        assert_eq!(one[0].in_flight(), 0);
    }
}
