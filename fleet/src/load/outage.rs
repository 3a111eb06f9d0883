//! Which instances were killed when: what may go wrong for that reason, and only that.

use std::time::Instant;

use parking_lot::Mutex;

#[derive(Debug)]
struct Outage {
    instance: String,
    from: Instant,
    to: Option<Instant>,
}

#[derive(Debug)]
enum Knowledge {
    /// Every outage is recorded here.
    Exact(Mutex<Vec<Outage>>),
    /// Somebody else kills; any failed connection may be their work.
    Blind,
}

/// Record of the kills during a run.
#[derive(Debug)]
pub(crate) struct Outages(Knowledge);

impl Outages {
    /// Outages are those that [`Outages::begin`] records; none so far.
    pub(crate) fn recorded() -> Self {
        Self(Knowledge::Exact(Mutex::default()))
    }

    /// Instances are killed from outside.
    pub(crate) fn unknown() -> Self {
        Self(Knowledge::Blind)
    }

    /// `instance` is about to be killed. Call before the kill: its effects must
    /// find the record.
    pub(crate) fn begin(&self, instance: &str) {
        if let Knowledge::Exact(outages) = &self.0 {
            outages.lock().push(Outage {
                instance: instance.to_owned(),
                from: Instant::now(),
                to: None,
            });
        }
    }

    /// `instance` serves again.
    pub(crate) fn end(&self, instance: &str) {
        if let Knowledge::Exact(outages) = &self.0 {
            let mut outages = outages.lock();
            let open = outages
                .iter_mut()
                .rfind(|outage| outage.instance == instance && outage.to.is_none());
            if let Some(outage) = open {
                outage.to = Some(Instant::now());
            }
        }
    }

    /// Whether the loss of `instance` (`None`: of any) excuses a failure between
    /// `since` and now.
    pub(super) fn excuse(&self, instance: Option<&str>, since: Instant) -> bool {
        match &self.0 {
            Knowledge::Blind => true,
            Knowledge::Exact(outages) => outages.lock().iter().any(|outage| {
                instance.is_none_or(|instance| outage.instance == instance)
                    && outage.to.is_none_or(|to| to >= since)
            }),
        }
    }

    /// Times of the kills, as seconds after `start`.
    pub(crate) fn times(&self, start: Instant) -> Vec<f64> {
        match &self.0 {
            Knowledge::Blind => Vec::new(),
            Knowledge::Exact(outages) => outages
                .lock()
                .iter()
                .map(|outage| outage.from.duration_since(start).as_secs_f64())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_killed_instance_is_an_excuse_and_only_then() {
        let outages = Outages::recorded();
        let before = Instant::now();
        assert!(!outages.excuse(None, before));
        outages.begin("a");
        assert!(outages.excuse(Some("a"), Instant::now()));
        assert!(outages.excuse(None, before));
        assert!(!outages.excuse(Some("b"), before));
        outages.end("a");
        assert!(outages.excuse(Some("a"), before));
        let after = Instant::now() + std::time::Duration::from_nanos(1);
        assert!(!outages.excuse(Some("a"), after));
        assert_eq!(outages.times(before).len(), 1);
    }

    #[test]
    fn kills_from_outside_excuse_anything() {
        assert!(Outages::unknown().excuse(Some("a"), Instant::now()));
    }
}
