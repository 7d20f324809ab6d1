//! A soak: one server under a moderate, mixed load for a given time. Clients connect and disconnect, join and leave rooms, resume
//! histories, read slowly, compress, and speak TLS. The server's memory and descriptors must stay flat, and each message must arrive or be
//! counted as dropped.
//!
//! The run consists of steps. In each step, clients send commands, the server makes a round of broadcasts while it handles them, and the
//! step waits until all clients have received what is due to them. Then some clients end, and once the server has closed their
//! connections, others take their place. So the number of recipients of each broadcast is known, and on a busy machine the steps only
//! take longer.
//!
//! The first steps are the warm-up. Memory is measured after its end.

mod connection;
mod load;
mod member;
mod series;

use std::thread;
use std::time::{Duration, Instant};

use crate::check::{During, Failure, Outcome, ensure};
use crate::machine;
use crate::random::seed_from_clock;
use crate::scenarios::mib;
use load::Load;
use series::{Series, WARM_UP_STEPS, WARM_UP_TIME, warm_up_is_over};

/// The command that starts a soak.
pub(crate) const COMMAND: &str = "soak";

/// One value for the plain app, and one for the app with TLS.
type Pair<T> = [T; 2];

const MINUTES: u64 = 60;
/// After the warm-up, a shorter run would be too short to compare memory at its end with the baseline.
const MINUTES_MIN: u64 = 3;
const STEP: Duration = Duration::from_millis(250);
/// Steps of the warm-up follow each other faster.
const WARM_UP_STEP: Duration = Duration::from_millis(60);

struct Options {
    minutes: u64,
    seed: u64,
}

impl Options {
    fn read(mut args: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut options = Self {
            minutes: MINUTES,
            seed: seed_from_clock(),
        };
        while let Some(arg) = args.next() {
            let value = args.next().unwrap_or_default();
            let number = value.parse().during(format!("{arg} {value}"));
            match arg.as_str() {
                "--minutes" => options.minutes = number?,
                "--seed" => options.seed = number?,
                _ => {
                    return Err(Failure::new(format!(
                        "soak has no option {arg}; its options are --minutes N and --seed N"
                    )));
                }
            }
        }
        ensure!(
            options.minutes >= MINUTES_MIN,
            "--minutes {} is too short: a soak takes at least {MINUTES_MIN} minutes",
            options.minutes
        );
        Ok(options)
    }
}

/// Runs a soak with the arguments of the command. Prints a line each minute and a summary, and fails if a check does.
pub(crate) fn run(args: impl Iterator<Item = String>) -> Outcome {
    let options = Options::read(args)?;
    machine::raise_descriptor_limit()?;
    println!("soak of {} minutes, seed {}", options.minutes, options.seed);
    let outcome = soak(&options);
    match &outcome {
        Ok(()) => println!("soak passed"),
        Err(_) => println!(
            "soak FAILED; repeat with soak --minutes {} --seed {}",
            options.minutes, options.seed
        ),
    }
    outcome
}

fn soak(options: &Options) -> Outcome {
    let mut run = Run::begin(options.seed)?;
    while !warm_up_is_over(run.load.steps(), run.begun.elapsed()) {
        run.step()?;
    }
    println!(
        "warm-up: ended after {:.0} s and {} steps; the memory of the next 30 s is the baseline",
        run.begun.elapsed().as_secs_f64(),
        run.load.steps()
    );
    let mut series = Series::begin();
    // On a slow machine the warm-up takes longer. The time after it stays the same.
    let measured = Duration::from_secs(options.minutes * 60) - WARM_UP_TIME;
    while series.elapsed() < measured {
        run.step()?;
        series.sample(|| Ok(mib(run.load.resident()?)))?;
    }
    run.report(&series)
}

/// A soak that runs.
struct Run {
    load: Load,
    begun: Instant,
    /// When the next step begins.
    next_step: Instant,
    /// The minutes that have been reported.
    minutes: u64,
}

impl Run {
    /// Starts the server and its load.
    fn begin(seed: u64) -> Outcome<Self> {
        let begun = Instant::now();
        Ok(Self {
            load: Load::begin(seed)?,
            begun,
            next_step: begun,
            minutes: 0,
        })
    }

    /// Runs a step, and waits until the next one is to begin. Prints a line at the end of each minute.
    fn step(&mut self) -> Outcome {
        let outcome = self.load.step();
        outcome.during(format!("after {:.1?}", self.begun.elapsed()))?;
        let minutes = self.begun.elapsed().as_secs() / 60;
        if minutes > self.minutes {
            self.minutes = minutes;
            println!("minute {minutes}: {}", self.load.describe()?);
        }
        let pause = match self.load.steps() < WARM_UP_STEPS {
            true => WARM_UP_STEP,
            false => STEP,
        };
        // A late step delays all later ones, so no steps follow each other without a pause to make up for it.
        self.next_step = (self.next_step + pause).max(Instant::now());
        thread::sleep(self.next_step.saturating_duration_since(Instant::now()));
        Ok(())
    }

    /// Ends the load, prints the summary, and checks memory.
    fn report(self, series: &Series) -> Outcome {
        let measured = series.elapsed();
        let seconds = self.begun.elapsed().as_secs_f64();
        let steady = self.load.descriptors();
        let totals = self.load.end().during("at the end")?;
        let trend = series.trend()?;
        let slope = match trend.slope {
            Some(slope) => format!("{slope:+.2} MiB/h after the first ten minutes"),
            None => "no slope, since the run ended within ten minutes".to_owned(),
        };
        println!(
            "memory: {slope}; {:.2} MiB in the 30 s after the warm-up, {:.2} MiB at the end of the load, ratio {:.3}; {:.2} MiB \
             without clients",
            trend.baseline,
            trend.late,
            trend.ratio(),
            mib(totals.resident),
        );
        println!(
            "descriptors: {} at the beginning, {steady} with all clients after every step, {} at the end",
            totals.descriptors_before, totals.descriptors_after
        );
        println!("{}", totals.counts);
        println!(
            "CPU: {:.1} % of a core by the server, {:.1} % by the clients",
            totals.server_cpu / seconds * 100.0,
            totals.own_cpu / seconds * 100.0
        );
        trend.check(measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_default_to_an_hour_and_refuse_what_is_unknown_or_too_short() {
        let read = |args: &[&str]| Options::read(args.iter().map(|&arg| arg.to_owned()));
        assert_eq!(read(&[]).unwrap().minutes, 60);
        let options = read(&["--minutes", "5", "--seed", "7"]).unwrap();
        assert_eq!((options.minutes, options.seed), (5, 7));
        for wrong in [&["--minutes", "2"][..], &["--minutes"], &["--hours", "1"]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
