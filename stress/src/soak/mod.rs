//! A day of a server: for as long as it is told, clients come and go, join and leave rooms, resume histories, read slowly,
//! compress and speak TLS. Memory and descriptors of the server stay flat, and each message arrives or is counted.
//!
//! The run consists of steps. In each, clients send commands, a round of broadcasts is made while the server handles them, and
//! all clients but the slow ones read until nothing is due. Then some clients end, and once the server has noticed that,
//! others take their place. So the number of recipients of each broadcast is known, and a busy machine only makes the steps
//! longer.

mod connection;
mod day;
mod member;
mod series;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::check::{During, Failure, Outcome, ensure};
use crate::machine;
use crate::scenarios::mib;
use day::Day;
use series::{Sample, Trend};

/// The command that starts a soak.
pub(crate) const COMMAND: &str = "soak";

/// What there is of the plain app, and of the app with TLS.
type Pair<T> = [T; 2];

const MINUTES: u64 = 60;
/// The first two minutes are the measure of a short run.
const MINUTES_MIN: u64 = 3;
const STEP: Duration = Duration::from_millis(250);
/// The same while the day begins: so memory that the server keeps once it has needed it, and that of the allocator, is nearly all
/// in use in minute 2.
const FIRST_STEP: Duration = Duration::from_millis(60);
const SAMPLE_EVERY: Duration = Duration::from_secs(3);

struct Options {
    minutes: u64,
    seed: u64,
}

impl Options {
    fn read(mut args: impl Iterator<Item = String>) -> Outcome<Self> {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut options = Self {
            minutes: MINUTES,
            seed: clock.map_or(0, |time| time.as_micros() as u64 % 1_000_000),
        };
        while let Some(arg) = args.next() {
            let value = args.next().unwrap_or_default();
            let number = value.parse().during(format!("{arg} {value}"));
            match arg.as_str() {
                "--minutes" => options.minutes = number?,
                "--seed" => options.seed = number?,
                _ => return Err(Failure::new(format!("soak has no option {arg}"))),
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
    let begun = Instant::now();
    let mut day = Day::begin(options.seed)?;
    let end = Duration::from_secs(options.minutes * 60);
    let mut samples = Vec::new();
    let mut minutes = 0;
    let mut next_step = begun;
    while begun.elapsed() < end {
        day.step()
            .during(format!("after {:.1?}", begun.elapsed()))?;
        let elapsed = begun.elapsed();
        if elapsed >= SAMPLE_EVERY * (samples.len() as u32 + 1) {
            samples.push(Sample {
                at: elapsed.as_secs_f64(),
                resident: mib(day.resident()?),
            });
        }
        if elapsed.as_secs() / 60 > minutes {
            minutes = elapsed.as_secs() / 60;
            println!("minute {minutes}: {}", day.progress()?);
        }
        // A step that is late is not caught up with.
        let pause = if day.begins() { FIRST_STEP } else { STEP };
        next_step = (next_step + pause).max(Instant::now());
        std::thread::sleep(next_step.saturating_duration_since(Instant::now()));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let steady = day.descriptors();
    let ended = day.end().during("at the end")?;
    let trend = Trend::of(&samples)?;
    let slope = match trend.slope {
        Some(slope) => format!("{slope:+.2} MiB/h after the first ten minutes"),
        None => "no slope within ten minutes".to_owned(),
    };
    println!(
        "memory: {slope}; {:.2} MiB in minute 2, {:.2} MiB at the end of the load, ratio {:.3}; {:.2} MiB without clients",
        trend.early,
        trend.late,
        trend.ratio(),
        mib(ended.resident),
    );
    println!(
        "descriptors: {} at the beginning, {steady} with all clients after every step, {} at the end",
        ended.descriptors_before, ended.descriptors_after
    );
    println!("{}", ended.counts);
    println!(
        "CPU: {:.1} % of a core by the server, {:.1} % by the clients",
        ended.server_cpu / seconds * 100.0,
        ended.own_cpu / seconds * 100.0
    );
    trend.check(seconds)
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
