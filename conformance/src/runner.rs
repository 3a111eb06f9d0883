//! Runs cases to their end, whatever that is.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use crate::{case::Case, restart::Turn, wait::Failure};

/// No case takes so long, unless it hangs.
const CASE_TIME: Duration = Duration::from_secs(120);
/// Cases wait more than they compute.
pub(crate) const THREADS: usize = 4;

/// Runs the cases that `select` picks, several at a time.
pub(crate) fn check(
    cases: &'static [Case],
    select: impl Fn(&Case) -> bool,
    run: impl Fn(&Case) -> Result<(), String> + Sync,
) -> Report {
    let picked: Vec<_> = cases.iter().filter(|case| select(case)).collect();
    let mut report = Report::default();
    for some in picked.chunks(THREADS) {
        let results: Vec<_> = std::thread::scope(|scope| {
            let spawn = |case: &&'static Case| {
                let (case, run) = (*case, &run);
                scope.spawn(move || in_turn(case, run))
            };
            let running: Vec<_> = some.iter().map(spawn).collect();
            let join = |case: std::thread::ScopedJoinHandle<'_, Result<(), String>>| {
                case.join().unwrap_or_else(|panic| Err(text_of(&*panic)))
            };
            running.into_iter().map(join).collect()
        });
        for (case, result) in some.iter().zip(results) {
            match result {
                Ok(()) => report.passed.push(case.name),
                Err(why) => report.failed.push((case.name, why)),
            }
        }
    }
    report
}

/// Runs a case, alone where it restarts servers, and says what to read where it fails.
pub(crate) fn in_turn(
    case: &Case,
    run: impl Fn(&Case) -> Result<(), String>,
) -> Result<(), String> {
    let _turn = Turn::wait(case.restarts());
    run(case).map_err(|why| format!("{why}\n{}", case.advice()))
}

/// Runs a case to its end, whatever that is.
pub(crate) fn on_a_runtime(body: impl Future<Output = Result<(), Failure>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .thread_name("case")
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let timed = async { tokio::time::timeout(CASE_TIME, body).await };
    let result = catch_unwind(AssertUnwindSafe(|| runtime.block_on(timed)));
    runtime.shutdown_timeout(Duration::from_secs(1));
    match result {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(failure))) => Err(failure.to_string()),
        Ok(Err(_)) => Err(format!("the case hangs: no end within {CASE_TIME:?}")),
        Err(panic) => Err(text_of(&*panic)),
    }
}

pub(crate) fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a message"))
}

/// A name for the store of one case, which nobody has used before.
pub(crate) fn namespace(suite: &str) -> String {
    let name = suite.chars().filter(char::is_ascii_alphanumeric).take(16);
    let name: String = name.map(|char| char.to_ascii_lowercase()).collect();
    format!("t_{name}_{:012x}", fastrand::u64(..) >> 16)
}

/// What became of the cases.
#[derive(Debug, Default, Clone)]
#[non_exhaustive]
pub struct Report {
    /// Cases that passed.
    pub passed: Vec<&'static str>,
    /// Cases that failed, and why.
    pub failed: Vec<(&'static str, String)>,
}
