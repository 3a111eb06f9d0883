//! Running the suite.

use std::{
    borrow::Cow,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use libtest_mimic::{Arguments, Trial};
use mcp_adapter_core::{Adapter, Capabilities, Engine, storage::Storage};

use crate::{
    case::{Absent, CASES, Case, Run, STORAGE_CASES},
    fleet::{BoxError, Fleet, Open, opener},
    options::Options,
    preflight::{self, Preflight},
    restart::{How, Restart},
    runner::{Report, THREADS, check, in_turn, namespace, on_a_runtime, text_of},
    storage::{OpenStorage, Store, storage_opener},
};

/// Certifies a backend: the `main` of a `harness = false` test. All cases, those
/// of [`run_storage`] and those of [`run`] over an [`Engine`] with it, in one run
/// with one verdict.
///
/// `open` opens a storage, for one instance. It is called several times per case;
/// the same [`Options::namespace`] means the same store. The usual arguments of
/// `cargo test` are understood; listing the cases opens nothing, which is why
/// the capabilities are said here and not asked of the storage. A storage that
/// claims more of itself than is said here fails.
#[must_use = "it is the verdict, and the exit code of the test"]
pub fn certify<S, O, F>(name: &str, capabilities: Capabilities, open: O) -> ExitCode
where
    S: Storage,
    O: Fn(Options) -> F + Send + Sync + 'static,
    F: Future<Output = Result<S, BoxError>> + Send + 'static,
{
    Suite::new(name, capabilities).certify(open)
}

/// Certifies an adapter: the `main` of a `harness = false` test.
///
/// `open` opens an instance, as the one of [`certify`] opens a storage. What
/// this leaves out are the steps of the storage: see
/// [`Suite::with_storage`].
#[must_use = "it is the verdict, and the exit code of the test"]
pub fn run<A, O, F>(name: &str, capabilities: Capabilities, open: O) -> ExitCode
where
    A: Adapter,
    O: Fn(Options) -> F + Send + Sync + 'static,
    F: Future<Output = Result<A, BoxError>> + Send + 'static,
{
    Suite::new(name, capabilities).run(open)
}

/// Certifies the steps of a [`Storage`]: the `main` of a `harness = false` test.
/// The full contract is certified by [`run`]; this tells which step is wrong.
/// [`certify`] does both.
#[must_use = "it is the verdict, and the exit code of the test"]
pub fn run_storage<S, O, F>(name: &str, capabilities: Capabilities, open: O) -> ExitCode
where
    S: Storage,
    O: Fn(Options) -> F + Send + Sync + 'static,
    F: Future<Output = Result<S, BoxError>> + Send + 'static,
{
    Suite::new(name, capabilities).run_storage(open)
}

fn preflight_of_storage(suite: &str, open: &Arc<OpenStorage>) -> Result<(), String> {
    let store = || Store::new(open, namespace(suite));
    on_a_runtime(preflight::storages(store(), store()))
}

fn conclude(trials: Vec<Trial>, preflight: &Preflight<'_>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let passed = preflight::guard(&arguments, trials, preflight);
    #[cfg(unix)]
    crate::server::stop();
    match passed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// The suite for one adapter, where [`certify`] and [`run`] say too little.
#[derive(Clone)]
#[must_use = "it does nothing unless it is run"]
pub struct Suite {
    name: String,
    capabilities: Capabilities,
    absent: Vec<Absent>,
    patience: Duration,
    restart: Option<Restart>,
    storage: Option<Arc<OpenStorage>>,
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite")
            .field("name", &self.name)
            .field("capabilities", &self.capabilities)
            .field("absent", &self.absent)
            .field("restart", &self.restart)
            .finish_non_exhaustive()
    }
}

impl Suite {
    /// The suite for an adapter with these capabilities. `name` is a word in
    /// lower case.
    pub fn new(name: &str, capabilities: Capabilities) -> Self {
        let mut absent = Vec::new();
        if !capabilities.durable {
            absent.push(Absent::Durable);
        }
        if !capabilities.push {
            absent.push(Absent::Push);
        }
        if !capabilities.shared {
            absent.push(Absent::Link);
        }
        Self {
            name: name.to_owned(),
            capabilities,
            absent,
            patience: Duration::from_secs(10),
            restart: None,
            storage: None,
        }
    }

    /// How long to wait for what must come, at the least. A good backend never
    /// needs it; the default is ten seconds.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Declares that the backend does not have this.
    pub fn without(mut self, absent: Absent) -> Self {
        self.absent.push(absent);
        self
    }

    /// Says how the store is closed and opened again, as every backend must that
    /// declares itself [`durable`](Capabilities::durable).
    ///
    /// ```no_run
    /// # use mcp_adapter_conformance::{Restart, Suite};
    /// # use mcp_adapter_core::Capabilities;
    /// # let suite = Suite::new("acme", Capabilities::in_process());
    /// suite.with_restart(Restart::by_handles());
    /// ```
    pub fn with_restart(mut self, restart: Restart) -> Self {
        self.restart = Some(restart);
        self
    }

    /// Has [`run`](Self::run) certify the steps of the storage below the adapter
    /// as well, in the same run. For adapters that are opened in their own way;
    /// where an [`Engine`] over the storage is all, [`certify`](Self::certify)
    /// needs no second closure.
    pub fn with_storage<S, O, F>(mut self, open: O) -> Self
    where
        S: Storage,
        O: Fn(Options) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, BoxError>> + Send + 'static,
    {
        self.storage = Some(storage_opener(open));
        self
    }

    /// Why a case is ignored, if it is.
    #[must_use]
    pub fn ignores(&self, case: &Case) -> Option<Absent> {
        let needs = case.needs?;
        if needs == Absent::Restart {
            let volatile = self.absent.contains(&Absent::Durable);
            let not = matches!(self.restart, Some(Restart(How::Not(_))));
            return match volatile {
                true => Some(Absent::Durable),
                false => not.then_some(needs),
            };
        }
        self.absent.contains(&needs).then_some(needs)
    }

    /// As an ignored case shows it.
    fn reason(&self, absent: Absent) -> Cow<'static, str> {
        match (absent, &self.restart) {
            (Absent::Restart, Some(Restart(How::Not(why)))) => why.clone(),
            (absent, _) => absent.label().into(),
        }
    }

    fn trial(
        &self,
        area: &str,
        case: &'static Case,
        run: impl Fn(&Case) -> Result<(), String> + Send + 'static,
    ) -> Trial {
        let ignored = self.ignores(case).map(|absent| self.reason(absent));
        let name = format!("{}::{area}{}", self.name, case.name);
        Trial::test(name, move || in_turn(case, run).map_err(Into::into))
            .with_ignored_flag(ignored.is_some())
            .with_kind(ignored.unwrap_or_default())
    }

    fn storage_trials(&self, open: &Arc<OpenStorage>) -> Vec<Trial> {
        let trial = |case| {
            let (open, suite) = (Arc::clone(open), self.clone());
            let run = move |case: &Case| suite.run_storage_case(case, &open);
            self.trial("storage::", case, run)
        };
        STORAGE_CASES.iter().map(trial).collect()
    }

    /// As [`run_storage`](run_storage()).
    #[must_use = "it is the verdict, and the exit code of the test"]
    pub fn run_storage<S, O, F>(self, open: O) -> ExitCode
    where
        S: Storage,
        O: Fn(Options) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, BoxError>> + Send + 'static,
    {
        let open = storage_opener(open);
        let trials = self.storage_trials(&open);
        conclude(trials, &|| preflight_of_storage(&self.name, &open))
    }

    /// As [`run`](run()).
    #[must_use = "it is the verdict, and the exit code of the test"]
    pub fn run<A, O, F>(self, open: O) -> ExitCode
    where
        A: Adapter,
        O: Fn(Options) -> F + Send + Sync + 'static,
        F: Future<Output = Result<A, BoxError>> + Send + 'static,
    {
        let open = opener(open);
        let mut trials = self
            .storage
            .as_ref()
            .map_or_else(Vec::new, |storage| self.storage_trials(storage));
        trials.extend(self.trials(&open));
        conclude(trials, &|| {
            if let Some(storage) = &self.storage {
                preflight_of_storage(&self.name, storage)?;
            }
            self.preflight(&open)
        })
    }

    /// As [`certify`](certify()).
    #[must_use = "it is the verdict, and the exit code of the test"]
    pub fn certify<S, O, F>(mut self, open: O) -> ExitCode
    where
        S: Storage,
        O: Fn(Options) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, BoxError>> + Send + 'static,
    {
        let open = storage_opener(open);
        self.storage = Some(Arc::clone(&open));
        self.run(move |options| {
            let limits = options.limits().clone();
            let opening = open(options);
            async move { Ok(Engine::new(opening.await?, limits)) }
        })
    }

    fn preflight(&self, open: &Arc<Open>) -> Result<(), String> {
        let fleets = [(), ()].map(|()| self.fleet(open));
        let [one, other] = fleets.clone();
        let verdict = on_a_runtime(preflight::instances(one, other));
        for fleet in fleets {
            fleet.end();
        }
        verdict
    }

    fn trials(&self, open: &Arc<Open>) -> Vec<Trial> {
        let trial = |case| {
            let (open, suite) = (Arc::clone(open), self.clone());
            self.trial("", case, move |case| suite.run_case(case, &open))
        };
        CASES.iter().map(trial).collect()
    }

    /// Runs the cases that `select` picks and that are not ignored, several at
    /// a time, and tells what became of each.
    pub fn check<A, O, F>(&self, select: impl Fn(&Case) -> bool, open: O) -> Report
    where
        A: Adapter,
        O: Fn(Options) -> F + Send + Sync + 'static,
        F: Future<Output = Result<A, BoxError>> + Send + 'static,
    {
        let open = opener(open);
        let runs = |case: &Case| select(case) && self.ignores(case).is_none();
        check(CASES, runs, |case| self.run_case(case, &open))
    }

    /// As [`check`](Self::check), of the cases over the storage seam.
    pub fn check_storage<S, O, F>(&self, select: impl Fn(&Case) -> bool, open: O) -> Report
    where
        S: Storage,
        O: Fn(Options) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, BoxError>> + Send + 'static,
    {
        let open = storage_opener(open);
        let runs = |case: &Case| select(case) && self.ignores(case).is_none();
        check(STORAGE_CASES, runs, |case| {
            self.run_storage_case(case, &open)
        })
    }

    fn run_storage_case(&self, case: &Case, open: &Arc<OpenStorage>) -> Result<(), String> {
        let Run::Storage(body) = case.run else {
            return Ok(());
        };
        let store = Store::new(open, namespace(&self.name));
        on_a_runtime(body(store.with_restart(self.restart.clone())))
    }

    /// On a store of its own.
    fn fleet(&self, open: &Arc<Open>) -> Fleet {
        let namespace = namespace(&self.name);
        let fleet = Fleet::new(open, namespace, self.capabilities, self.patience);
        fleet.with_restart(self.restart.clone())
    }

    fn run_case(&self, case: &Case, open: &Arc<Open>) -> Result<(), String> {
        let Run::Contract(body) = case.run else {
            return Ok(());
        };
        let fleet = self.fleet(open);
        let verdict = on_a_runtime(body(fleet.clone()));
        let ended = catch_unwind(AssertUnwindSafe(|| fleet.end()));
        verdict?;
        ended.map_err(|panic| format!("closing the instances: {}", text_of(&*panic)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt;

    use super::*;

    #[test]
    fn listing_opens_nothing_and_a_missing_server_fails() {
        let opened = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&opened);
        let open: Arc<Open> = Arc::new(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            async { Err("there is no server".into()) }.boxed()
        });
        let suite = Suite::new("none", Capabilities::in_process());
        let arguments = Arguments {
            list: true,
            filter: Some("session::a_live_id".into()),
            ..Arguments::default()
        };
        let listed = libtest_mimic::run(&arguments, suite.trials(&open));
        assert!(!listed.has_failed());
        assert_eq!(opened.load(Ordering::SeqCst), 0);
        let failed = suite.run_case(&CASES[0], &open).unwrap_err();
        assert!(failed.contains("there is no server"), "{failed}");
        assert_eq!(opened.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn who_says_that_a_store_is_durable_says_how_it_is_closed() {
        let durable = Suite::new("durable", Capabilities::server(Duration::from_millis(1)));
        let run = |suite: &Suite| {
            suite.check_storage(Case::restarts, |options| async move {
                Ok(options.store(mcp_adapter_memory::MemoryStorage::new))
            })
        };
        let silent = run(&durable);
        assert!(silent.passed.is_empty() && !silent.failed.is_empty());
        for (case, why) in silent.failed {
            assert!(why.contains(".with_restart(..)"), "{case}: {why}");
        }
        // A store in memory is caught, and one that is another's is not looked at.
        let closed = run(&durable.clone().with_restart(Restart::by_handles()));
        assert!(closed.passed.is_empty() && !closed.failed.is_empty());
        for (case, why) in closed.failed {
            assert!(why.contains("closed and opened again"), "{case}: {why}");
        }
        let broken = run(&durable
            .clone()
            .with_restart(Restart::by(|_| async { Err("no power".into()) })));
        for (case, why) in broken.failed {
            assert!(why.contains("no power"), "{case}: {why}");
        }
        let foreign = durable.with_restart(Restart::none("it is another's"));
        let report = run(&foreign);
        assert!(report.passed.is_empty() && report.failed.is_empty());
        let case = STORAGE_CASES.iter().find(|case| case.restarts());
        let reason = case
            .and_then(|case| foreign.ignores(case))
            .map(|why| foreign.reason(why));
        assert_eq!(reason.as_deref(), Some("it is another's"));
    }

    #[test]
    fn namespaces_are_names_for_any_backend_and_never_the_same() {
        let one = namespace("A very long name: with/other'characters");
        assert!(one.len() <= 32, "{one}");
        assert!(one.starts_with("t_averylong"));
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        assert!(one.bytes().all(fits), "{one}");
        assert_ne!(one, namespace("A very long name: with/other'characters"));
    }
}
