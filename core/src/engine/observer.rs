//! Who is dead, told without anybody's clock but our own (clause F3).

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::{
    id::InstanceId,
    storage::{Beat, Dead},
};

/// An instance is dead when its counter stood still for a whole lease of this
/// observer's monotonic time, over reads that all succeeded.
#[derive(Debug)]
pub(super) struct Observer {
    me: InstanceId,
    lease: Duration,
    seen: HashMap<InstanceId, Seen>,
    /// When the first of an unbroken row of successful reads was answered, and
    /// when the last was sent: a read shows a moment between the two, and only
    /// what lies between two reads for sure was standing still.
    reads: Option<(Instant, Instant)>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    beat: Option<u64>,
    since: Instant,
}

/// Leases after which a dead instance that the backend no longer lists, and
/// whose leftovers nobody met, is forgotten.
const FORGET_AFTER: u32 = 20;

impl Observer {
    pub(super) fn new(me: InstanceId, lease: Duration) -> Self {
        Self {
            me,
            lease,
            seen: HashMap::new(),
            reads: None,
        }
    }

    /// A read of all heartbeats, sent and answered at these times.
    pub(super) fn read(&mut self, beats: &[Beat], sent: Instant, answered: Instant) {
        // Where this instance itself stood still, so may have the others: a
        // suspended host must not judge at its first breath.
        let unbroken = |(_, last): &(Instant, Instant)| sent - *last <= self.lease / 2;
        let first = self
            .reads
            .filter(unbroken)
            .map_or(answered, |(first, _)| first);
        self.reads = Some((first, sent));
        let me = self.me;
        for beat in beats.iter().filter(|beat| beat.instance != me) {
            self.saw(beat.instance, Some(beat.count), answered);
        }
        let listed = |instance: &InstanceId| beats.iter().any(|beat| beat.instance == *instance);
        let missing: Vec<_> = self.seen.keys().filter(|id| !listed(id)).copied().collect();
        for instance in missing {
            self.saw(instance, None, answered);
        }
        let forget = self.lease * FORGET_AFTER;
        self.seen
            .retain(|_, seen| seen.beat.is_some() || answered - seen.since < forget);
    }

    fn saw(&mut self, instance: InstanceId, beat: Option<u64>, since: Instant) {
        let new = Seen { beat, since };
        let seen = self.seen.entry(instance).or_insert(new);
        if seen.beat != beat {
            *seen = new;
        }
    }

    /// A read failed: nobody's standing still before now counts.
    pub(super) fn failed(&mut self) {
        self.reads = None;
    }

    /// The proof that `instance` is dead. One that was never seen is watched
    /// from now on.
    pub(super) fn dead(&mut self, instance: InstanceId) -> Option<Dead> {
        if instance == self.me {
            return None;
        }
        let (first, last) = self.reads?;
        let seen = self.seen.entry(instance).or_insert_with(|| Seen {
            beat: None,
            since: Instant::now(),
        });
        let still = last.saturating_duration_since(seen.since.max(first));
        (still >= self.lease).then_some(Dead {
            instance,
            beat: seen.beat,
        })
    }

    /// All that are dead.
    pub(super) fn all_dead(&mut self) -> Vec<Dead> {
        let known: Vec<_> = self.seen.keys().copied().collect();
        known
            .into_iter()
            .filter_map(|instance| self.dead(instance))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);
    const ME: InstanceId = InstanceId(0);
    const OTHER: InstanceId = InstanceId(1);

    fn beat(count: u64) -> Vec<Beat> {
        vec![Beat {
            instance: OTHER,
            count,
        }]
    }

    struct Run {
        observer: Observer,
        start: Instant,
    }

    impl Run {
        fn new() -> Self {
            Self {
                observer: Observer::new(ME, LEASE),
                start: Instant::now(),
            }
        }

        fn read(&mut self, second: u64, beats: &[Beat]) -> Option<Dead> {
            let at = self.start + Duration::from_secs(second);
            self.observer.read(beats, at, at);
            self.observer.dead(OTHER)
        }
    }

    #[test]
    fn only_a_whole_lease_of_standing_still_is_death() {
        let mut run = Run::new();
        for second in 0..30 {
            assert_eq!(run.read(second, &beat(second)), None);
        }
        for second in 30..39 {
            assert_eq!(run.read(second, &beat(29)), None);
        }
        let dead = run.read(39, &beat(29)).unwrap();
        assert_eq!(dead.beat, Some(29));
        assert_eq!(run.read(40, &beat(30)), None, "it has thawed");
    }

    #[test]
    fn an_outage_or_a_flush_of_the_backend_kills_nobody() {
        let mut run = Run::new();
        assert_eq!(run.read(0, &beat(1)), None);
        run.observer.failed();
        // Everybody was cut off for a minute; the other comes back later.
        for second in 60..70 {
            assert_eq!(run.read(second, &beat(1)), None);
        }
        assert_eq!(run.read(70, &beat(2)), None);
        // All heartbeats are flushed; it writes its own again.
        for second in 71..79 {
            assert_eq!(run.read(second, &[]), None);
        }
        assert_eq!(run.read(80, &beat(3)), None);
    }

    #[test]
    fn a_slow_read_shows_no_longer_ago_than_its_answer() {
        let mut run = Run::new();
        let at = |seconds| run.start + Duration::from_secs(seconds);
        let (sent, answered) = (at(0), at(3));
        run.observer.read(&beat(7), sent, answered);
        for second in 4..13 {
            assert_eq!(run.read(second, &beat(7)), None);
        }
        assert!(run.read(13, &beat(7)).is_some());
    }

    #[test]
    fn a_pause_of_the_observer_kills_nobody() {
        let mut run = Run::new();
        for second in 0..9 {
            assert_eq!(run.read(second, &beat(1)), None);
        }
        assert_eq!(run.read(600, &beat(1)), None, "all hosts were suspended");
        assert_eq!(run.read(601, &beat(2)), None);
    }

    #[test]
    fn a_fresh_instance_waits_a_lease_before_it_judges() {
        let mut run = Run::new();
        assert_eq!(run.observer.dead(OTHER), None);
        for second in 1..11 {
            assert_eq!(run.read(second, &[]), None);
        }
        assert_eq!(run.read(11, &[]).unwrap().beat, None);
        assert_eq!(run.observer.dead(ME), None);
    }
}
