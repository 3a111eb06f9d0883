//! A seeded simulation of a fleet over a hostile backend.
//!
//! Three instances of the engine, with a link each, share a store. While
//! clients create sessions, run calls, cut their streams off and resume them
//! elsewhere, answer requests in competition, count the same counter up, listen in
//! twos, cancel and delete, an adversary
//! drops, repeats and reorders wake-ups; cuts links; refuses commands, or lets
//! them take effect and drops the reply, or lets them take effect when their
//! caller has given up, or twice, or half of a batch; stalls an instance, or all
//! of them, for longer than a lease; kills and replaces instances; restarts the
//! backend with its data, without the last of them, with an older copy, or
//! empty. Then all is well, everything must come to its end, and a checker holds
//! the recorded history against the contract ([`check`]).
//!
//! Time is paused and the runtime has one thread, so that a minute's storm takes
//! some milliseconds. What is done, and what goes wrong when, is drawn from the
//! seed. Not from the seed are what the engine draws from the operating system:
//! ids, tokens, the jitter of its repeats, the branch of a `select!`, and the
//! order of its hash maps. The same seed therefore has the same plan and nearly
//! the same course, not always the same one: `HOSTILE_REPEAT` runs it again.
//!
//! | to | run |
//! |---|---|
//! | run 120 seeds, the controls and the checker's own tests | `cargo test -p mcp-adapter-core --test hostile` |
//! | run 10 000 seeds | `HOSTILE_SEEDS=0..10000 cargo test --release -p mcp-adapter-core --test hostile no_seed -- --nocapture` |
//! | run one seed | `HOSTILE_SEED=17 cargo test -p mcp-adapter-core --test hostile no_seed` |
//! | run it often | the same with `HOSTILE_REPEAT=20` |
//! | keep the history of the first failure | the same with `HOSTILE_HISTORY=file` |
//!
//! Stores are [`reference`], a second implementation of the seam that can be
//! copied and put back, and the memory backend. An instance that is frozen is not
//! polled from outside and its link stalls; the engine's own tasks run on, for
//! they cannot be stopped one by one, and find that nothing answers.

mod adversary;
mod check;
mod controls;
mod fleet;
mod history;
mod link;
mod load;
mod reference;
mod repairs;
mod rng;
mod run;
mod seeds;
mod wire;
