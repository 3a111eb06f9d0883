//! What must be right in the test file before any case can tell something.

use libtest_mimic::{Arguments, Trial};
use mcp_adapter_core::SessionId;

use crate::{
    fleet::Fleet,
    instance::record,
    storage::{self, Store},
    wait::{Failure, Verdict},
};

/// Says what is wrong.
pub(crate) type Preflight<'a> = dyn Fn() -> Result<(), String> + 'a;

const TWO_STORES: &str = "two instances that were opened with the same `Options::namespace` are \
    not on one store: what one has created the other does not find. A store in this process \
    comes from `options.store(..)`; any other is named by `options.namespace()`";
const ONE_STORE: &str = "instances that were opened with different values of \
    `Options::namespace` are on one store: name a schema, a key prefix or a file by it";

/// Runs the trials, unless the test file itself is wrong: then each case would
/// say so in its own dark way. Where one case is asked for by its exact name, as
/// by runners that give each a process, it is not checked before but told of
/// after a failure.
pub(crate) fn guard(arguments: &Arguments, trials: Vec<Trial>, preflight: &Preflight<'_>) -> bool {
    let check = || match preflight() {
        Ok(()) => true,
        Err(why) => {
            eprintln!("\nThe test file opens no backend that could be certified:\n{why}\n");
            false
        }
    };
    let runs = !arguments.list && trials.iter().any(|trial| is_picked(arguments, trial));
    if runs && !arguments.exact && !check() {
        return false;
    }
    let failed = libtest_mimic::run(arguments, trials).has_failed();
    if failed && arguments.exact {
        check();
    }
    !failed
}

/// Whether it will be run: nothing is to be opened for a filter that picks none.
fn is_picked(arguments: &Arguments, trial: &Trial) -> bool {
    let name = trial.name();
    let fits = |text: &String| match arguments.exact {
        true => name == text,
        false => name.contains(text.as_str()),
    };
    let ignored = match trial.has_ignored_flag() {
        true => arguments.ignored || arguments.include_ignored,
        false => !arguments.ignored,
    };
    ignored && arguments.filter.iter().all(fits) && !arguments.skip.iter().any(fits)
}

/// One store per fleet, and another for another fleet.
pub(crate) async fn instances(one: Fleet, other: Fleet) -> Verdict {
    let [a, b] = one.instances().await?;
    let id = SessionId::generate();
    a.create(&id, record()).await?;
    if b.look(&id, None).await.is_err() {
        return Err(Failure::new(TWO_STORES));
    }
    if other.instance().await?.look(&id, None).await.is_ok() {
        return Err(Failure::new(ONE_STORE));
    }
    a.delete(&id, None).await?;
    Ok(())
}

/// The same of storages.
pub(crate) async fn storages(one: Store, other: Store) -> Verdict {
    let (a, b, apart) = (one.open().await?, one.open().await?, other.open().await?);
    match storage::seen_by(&a, &b, &apart).await? {
        (true, false) => Ok(()),
        (false, _) => Err(Failure::new(TWO_STORES)),
        (true, true) => Err(Failure::new(ONE_STORE)),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use mcp_adapter_core::{Capabilities, Engine, Limits};
    use mcp_adapter_memory::MemoryStorage;

    use super::*;
    use crate::{
        fleet::{BoxError, opener},
        options::Options,
        storage::storage_opener,
    };

    /// How a test file opens its stores, right and wrong.
    #[derive(Clone, Copy)]
    enum Opens {
        PerNamespace,
        PerInstance,
        ForAll,
    }

    fn open(
        opens: Opens,
    ) -> impl Fn(Options) -> std::future::Ready<Result<MemoryStorage, BoxError>> {
        let all = MemoryStorage::new();
        move |options| {
            std::future::ready(Ok(match opens {
                Opens::PerNamespace => options.store(MemoryStorage::new),
                Opens::PerInstance => MemoryStorage::new(),
                Opens::ForAll => all.clone(),
            }))
        }
    }

    const WRONG: [(Opens, &str); 2] =
        [(Opens::PerInstance, TWO_STORES), (Opens::ForAll, ONE_STORE)];

    #[tokio::test]
    async fn storages_are_one_per_namespace() {
        let checked = async |opens| {
            let open = storage_opener(open(opens));
            let store = |name: &str| Store::new(&open, name.into());
            storages(store("one"), store("other")).await
        };
        checked(Opens::PerNamespace).await.unwrap();
        for (opens, why) in WRONG {
            let failure = checked(opens).await.unwrap_err().to_string();
            assert!(failure.starts_with(why), "{failure}");
        }
    }

    #[tokio::test]
    async fn instances_are_on_one_store_per_namespace() {
        let checked = async |opens| {
            let storage = open(opens);
            let open = opener(move |options: Options| {
                let storage = storage(options);
                async move { Ok(Engine::new(storage.await?, Limits::default())) }
            });
            let capabilities = Capabilities::in_process();
            let fleet =
                |name: &str| Fleet::new(&open, name.into(), capabilities, Duration::from_secs(5));
            let fleets = [fleet("one"), fleet("other")];
            let [one, other] = fleets.clone();
            let verdict = instances(one, other).await;
            tokio::task::spawn_blocking(move || fleets.iter().for_each(Fleet::end))
                .await
                .unwrap();
            verdict
        };
        checked(Opens::PerNamespace).await.unwrap();
        for (opens, why) in WRONG {
            let failure = checked(opens).await.unwrap_err().to_string();
            assert!(failure.starts_with(why), "{failure}");
        }
    }

    /// Whether it passed, how often the preflight and the case were run.
    fn guarded(arguments: &Arguments, right: bool, passes: bool) -> (bool, usize, usize) {
        let (flights, runs) = (Cell::new(0), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&runs);
        let trial = Trial::test("acme::event::order", move || {
            counter.fetch_add(1, Ordering::SeqCst);
            passes.then_some(()).ok_or_else(|| "no order".into())
        });
        let passed = guard(arguments, vec![trial], &|| {
            flights.set(flights.get() + 1);
            right.then_some(()).ok_or_else(|| "two stores".into())
        });
        (passed, flights.get(), runs.load(Ordering::SeqCst))
    }

    #[test]
    fn nothing_is_run_where_the_test_file_is_wrong() {
        let all = Arguments::default();
        assert_eq!(guarded(&all, true, true), (true, 1, 1));
        assert_eq!(guarded(&all, true, false), (false, 1, 1));
        assert_eq!(guarded(&all, false, true), (false, 1, 0));
    }

    #[test]
    fn nothing_is_opened_for_what_is_not_run() {
        let with = |filter: &str| Arguments {
            filter: Some(filter.into()),
            ..Arguments::default()
        };
        assert_eq!(guarded(&with("event"), false, true), (false, 1, 0));
        assert_eq!(guarded(&with("session"), false, true), (true, 0, 0));
        let list = Arguments {
            list: true,
            ..Arguments::default()
        };
        assert_eq!(guarded(&list, false, true), (true, 0, 0));
        let ignored = Arguments {
            ignored: true,
            ..Arguments::default()
        };
        assert_eq!(guarded(&ignored, false, true), (true, 0, 0));
        let skipped = Arguments {
            skip: vec!["order".into()],
            ..Arguments::default()
        };
        assert_eq!(guarded(&skipped, false, true), (true, 0, 0));
    }

    #[test]
    fn a_case_in_a_process_of_its_own_is_told_about_when_it_fails() {
        let exact = Arguments {
            exact: true,
            filter: Some("acme::event::order".into()),
            ..Arguments::default()
        };
        assert_eq!(guarded(&exact, true, true), (true, 0, 1));
        assert_eq!(guarded(&exact, false, false), (false, 1, 1));
    }
}
