//! How long to train between two checkpoints.

use std::time::Duration;

use crate::{Event, ledger::Entry};

/// Before anything is known of a machine: one failure in so long.
pub(super) const PRIOR: Duration = Duration::from_secs(3 * 3600);

/// Before it is known what a checkpoint costs.
const FIRST: Duration = Duration::from_secs(10);

/// Of the mean time between failures, so much may pass before the first checkpoint of a job.
const FIRST_SHARE: u32 = 50;

/// At most so long, if the two bounds below allow it.
const MOST: Duration = Duration::from_secs(1800);

/// Training lasts at least so many times as long as the stall: 1 % of the time and not more goes to stalls.
const STALL_SHARE: u32 = 100;

/// Training lasts at least so many times as long as writing in the background does, which takes time of processors that
/// training may want.
const WRITE_SHARE: u32 = 10;

/// The time between two checkpoints, without the stall, that wastes least when a checkpoint stalls for `stall` and failures
/// come `between` apart on average: √(2δM) (Young 1974), with the terms for a δ that is not small beside M (Daly 2006, eq. 37).
pub fn young_daly(stall: Duration, between: Duration) -> Duration {
    let (d, m) = (stall.as_secs_f64(), between.as_secs_f64());
    if d >= 2.0 * m {
        return between;
    }
    let x = (d / (2.0 * m)).sqrt();
    Duration::from_secs_f64(((2.0 * d * m).sqrt() * (1.0 + x / 3.0 + x * x / 9.0) - d).max(0.0))
}

/// The time to train between two checkpoints that stall for `stall` and take `saving` until they are published.
pub(super) fn choose(stall: Duration, saving: Duration, between: Duration) -> Duration {
    young_daly(stall, between).min(MOST).max(STALL_SHARE * stall).max(WRITE_SHARE * saving)
}

/// The time before the first, whose cost is not known yet.
pub(super) fn first(between: Duration) -> Duration {
    FIRST.min(between / FIRST_SHARE)
}

/// How often jobs of a run have failed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Failures {
    /// Seconds that jobs ran.
    pub seconds: f64,
    /// How many ended before their work was done.
    pub number: u32,
}

impl Failures {
    /// Reads the ledger of the jobs before this one. Each whose work was not done counts as a failure, whoever noticed it; the
    /// time between two jobs does not count.
    pub fn of(entries: &[Entry]) -> Self {
        let mut sum = Self::default();
        let (mut began, mut last) = (None, 0.0);
        for Entry { at, event } in entries {
            match event {
                Event::Launched { .. } => {
                    if let Some(began) = began.replace(*at) {
                        sum.number += 1;
                        sum.seconds += f64::max(last - began, 0.0);
                    }
                }
                Event::Done { .. } => {
                    sum.seconds += began.take().map_or(0.0, |began| f64::max(at - began, 0.0));
                }
                // Noted by whoever watches, maybe long after the job's last sign of life.
                Event::Failed { .. } | Event::Injected { .. } => continue,
                _ => {}
            }
            last = *at;
        }
        if let Some(began) = began {
            sum.number += 1;
            sum.seconds += f64::max(last - began, 0.0);
        }
        sum
    }

    /// The mean time between failures after `running` more without one; with few failures it is mostly what is usual.
    pub(super) fn mean_time(&self, running: Duration, usual: Duration) -> Duration {
        let seconds = Duration::try_from_secs_f64(self.seconds).unwrap_or_default();
        (usual + seconds + running) / (1 + self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected time of a run over its useful part, when failures are a Poisson process (Daly 2006, eq. 20; the time of a
    /// restart is a factor that does not matter here).
    fn overhead(interval: f64, stall: f64, between: f64) -> f64 {
        between / interval * (((interval + stall) / between).exp() - 1.0)
    }

    #[test]
    fn the_interval_wastes_least() {
        for (stall, between) in [(0.1, 10_800.0), (5.0, 10_800.0), (60.0, 3600.0), (120.0, 600.0)] {
            let chosen = young_daly(Duration::from_secs_f64(stall), Duration::from_secs_f64(between));
            let chosen = chosen.as_secs_f64();
            let best = (1..100_000).map(|i| f64::from(i) * between / 50_000.0);
            let best = best.map(|t| overhead(t, stall, between)).fold(f64::INFINITY, f64::min);
            let found = overhead(chosen, stall, between);
            assert!(found < best * 1.0005, "{stall} s, {between} s: {chosen} s costs {found}, best {best}");
            // Twice or half as long costs more.
            for other in [chosen * 2.0, chosen / 2.0] {
                assert!(overhead(other, stall, between) > found, "{stall} s, {between} s: {other} s");
            }
        }
        let near = young_daly(Duration::from_secs_f64(0.1), Duration::from_secs(10_800)).as_secs_f64();
        assert!(
            (near / (2.0f64 * 0.1 * 10_800.0).sqrt() - 1.0).abs() < 2e-2,
            "Young's, where the stall is short"
        );
        let hour = Duration::from_secs(3600);
        assert_eq!(young_daly(3 * hour, hour), hour);
        assert_eq!(young_daly(Duration::ZERO, hour), Duration::ZERO);
    }

    #[test]
    fn stalls_and_writes_take_their_share_and_not_more() {
        let seconds = Duration::from_secs;
        let long = seconds(3 * 3600);
        assert_eq!(choose(seconds(30), seconds(60), long), seconds(3000));
        assert_eq!(choose(Duration::ZERO, seconds(70), long), seconds(700));
        assert_eq!(choose(seconds(1), seconds(2), 1000 * long), MOST);
        let usual = choose(Duration::from_millis(100), seconds(2), long);
        assert_eq!(usual, young_daly(Duration::from_millis(100), long));
    }

    #[test]
    fn failures_are_counted_from_the_ledger() {
        let launched = || Event::Launched { makes: "a".into(), ranks: 1 };
        let failed = || Event::Failed { reason: "killed".into(), hung: true };
        let step = |step| Event::Step { step };
        let events = [
            (0.0, launched()),
            (100.0, step(0)),
            // Found an hour later, which nobody ran.
            (3700.0, failed()),
            (3700.0, launched()),
            (3800.0, step(1)),
            // Nobody watched this one.
            (9000.0, launched()),
            (9200.0, Event::Done { step: 2 }),
        ];
        let entries: Vec<Entry> = events.into_iter().map(|(at, event)| Entry { at, event }).collect();
        assert_eq!(Failures::of(&entries), Failures { seconds: 400.0, number: 2 });
        assert_eq!(Failures::of(&entries[..2]), Failures { seconds: 100.0, number: 1 });
        assert_eq!(Failures::of(&[]).mean_time(Duration::ZERO, PRIOR), PRIOR);
        let often = Failures { seconds: 600.0, number: 60 };
        let mean = often.mean_time(Duration::from_secs(20), PRIOR).as_secs_f64();
        assert!((mean - (10_800.0 + 620.0) / 61.0).abs() < 1e-6, "{mean}");
    }
}
