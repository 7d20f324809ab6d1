//! The files that the program follows: the rooms of their names, and the thread that sends their lines.

use std::io;
use std::ops::ControlFlow;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use humphrey_ws::Limits;

use crate::diagnostics::{printable, report};
use crate::follow::{Follower, Note, Start, Waker};
use crate::input::InputAccount;
use crate::lines::Line;
use crate::room_name::RoomName;
use crate::rooms::{Rooms, SourceChannel};
use crate::sources::Sources;

/// Whether an argument stands for standard input.
pub(crate) fn is_standard_input(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// The files to follow, each with its room.
#[derive(Debug)]
pub(crate) struct FollowedFiles(Vec<(PathBuf, RoomName)>);

impl FollowedFiles {
    /// Takes the files among the arguments.
    ///
    /// # Errors
    ///
    /// An argument can't be followed, or resembles one of the program's `commands` or a URL.
    pub(crate) fn new(arguments: &[PathBuf], commands: &[&str]) -> io::Result<Self> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let named: Vec<_> = arguments
            .iter()
            .filter(|path| !is_standard_input(path))
            .collect();
        for (index, path) in named.iter().enumerate() {
            check(path, commands).map_err(invalid)?;
            if let Some(url) = url(path) {
                let before = match index {
                    0 => String::new(),
                    _ => format!("'{}' is no command, and ", printable(named[0])),
                };
                return Err(invalid(format!(
                    "{before}{url} is no file: 'listen {url}' prints its messages, and 'send {url}' sends lines to it"
                )));
            }
        }
        // Removes trailing slashes.
        let tidy = |path: &PathBuf| path.components().collect::<PathBuf>();
        let (directories, paths): (Vec<_>, Vec<_>) =
            named.into_iter().map(tidy).partition(|path| path.is_dir());
        if let Some(directory) = directories.first() {
            let what = format!("{} is a directory", printable(directory));
            if paths.is_empty() {
                return Err(invalid(format!("{what}: name the files in it")));
            }
            // The shell may have named it, for `*`.
            report!("{what}, and not followed");
        }
        let parts: Vec<_> = paths
            .iter()
            .map(|path| parts(path))
            .collect::<io::Result<_>>()?;
        let mut files = Vec::with_capacity(paths.len());
        for (index, path) in paths.into_iter().enumerate() {
            let room = room_of(index, &parts).and_then(|name| {
                name.parse()
                    .map_err(|why| format!("{why}, so it can't be that of {}", printable(&path)))
            });
            files.push((path, room.map_err(invalid)?));
        }
        Ok(Self(files))
    }

    /// How many descriptors are needed to follow them: during a rotation, two for each.
    pub(crate) fn descriptors(&self) -> u64 {
        2 * self.0.len() as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn rooms(&self) -> impl Iterator<Item = &RoomName> {
        self.0.iter().map(|(_, room)| room)
    }

    /// Opens the files. Lines that are written to them from now on will be sent, and so many before them. `None` if there are
    /// no files.
    pub(crate) fn open(self, lines: u64) -> io::Result<Option<OpenFiles>> {
        if self.is_empty() {
            return Ok(None);
        }
        let paths = self.0.iter().map(|(path, _)| path.clone()).collect();
        let line_bytes_max = Limits::default().message_bytes_max;
        Ok(Some(OpenFiles {
            follower: Follower::new(paths, Start::LastLines(lines), line_bytes_max)?,
            files: self,
        }))
    }
}

pub(crate) struct OpenFiles {
    files: FollowedFiles,
    follower: Follower,
}

impl OpenFiles {
    /// Sends the lines of the files to their rooms, on a thread of its own.
    pub(crate) fn follow(
        self,
        rooms: &Rooms,
        sources: &Sources,
        account: Arc<InputAccount>,
        quiet: bool,
    ) -> io::Result<Following> {
        let Self { files, follower } = self;
        let files = Files {
            channels: files
                .rooms()
                .map(|room| rooms.source_channel(sources, room))
                .collect(),
            paths: files.0.into_iter().map(|(path, _)| path).collect(),
            account,
            quiet,
        };
        let is_over = Arc::new(AtomicBool::new(false));
        let (stopping, waker) = (is_over.clone(), follower.waker());
        let thread = thread::Builder::new().name("files".into());
        let thread = thread.spawn(move || {
            let is_stopping = || stopping.load(Ordering::SeqCst);
            let each = |index, line: Line<'_>| files.send(index, line);
            let end = follower.run(is_stopping, each, |index, note| files.tell(index, &note));
            if let Err(error) = end {
                files.account.fail();
                report!("the files can't be followed any longer: {error}");
            }
        })?;
        Ok(Following {
            is_over,
            waker,
            thread: Some(thread),
        })
    }
}

/// The thread that follows files. It ends when this is dropped.
pub(crate) struct Following {
    is_over: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// What the thread knows of the files, by their indexes.
struct Files {
    paths: Vec<PathBuf>,
    channels: Vec<SourceChannel>,
    account: Arc<InputAccount>,
    quiet: bool,
}

impl Files {
    fn send(&self, index: usize, line: Line<'_>) -> ControlFlow<()> {
        match line {
            Line::Whole(line) => {
                self.channels[index].publish(line);
                self.account.sent(line.len());
            }
            Line::TooLong { bytes } => {
                let path = printable(&self.paths[index]);
                self.account
                    .skipped(format_args!("a line of {path}"), bytes);
            }
        }
        ControlFlow::Continue(())
    }

    fn tell(&self, index: usize, note: &Note) {
        let is_failure = matches!(note, Note::Missed(_) | Note::Unreadable(_));
        if is_failure {
            self.account.fail();
        }
        if is_failure || !self.quiet {
            report!("{}", note.message(&self.paths[index]));
        }
    }
}

/// An argument that is the URL of a server.
fn url(path: &Path) -> Option<&str> {
    let name = path.to_str()?;
    let schemes = ["ws://", "wss://", "http://", "https://"];
    schemes
        .iter()
        .any(|scheme| name.starts_with(scheme))
        .then_some(name)
}

/// Refuses an argument that can't be followed, or resembles a command.
fn check(path: &Path, commands: &[&str]) -> Result<(), String> {
    let name = path.to_string_lossy();
    if name.is_empty() {
        return Err("the name of a file is empty".to_owned());
    }
    // Without this check, the program would wait for a file of that name.
    let is_word = name.chars().all(char::is_alphabetic);
    let is_similar = |command: &&&str| is_word && strsim::jaro(command, &name) > 0.8;
    match commands.iter().find(is_similar) {
        Some(command) if *command == name && !path.exists() => Err(format!(
            "the command '{name}' takes no files: it must be the first argument, and './{name}' is a file that may \
             appear later"
        )),
        Some(command) if !path.exists() => Err(format!(
            "'{name}' is neither a file nor a command; a similar command exists: '{command}', and './{name}' is a \
             file that may appear later (try --help)"
        )),
        _ => Ok(()),
    }
}

/// The names of a path's directories and of its file.
fn parts(path: &Path) -> io::Result<Vec<String>> {
    let mut parts = Vec::new();
    for component in std::path::absolute(path)?.components() {
        match component {
            Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
            Component::ParentDir => drop(parts.pop()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    Ok(parts)
}

/// The name of the room of one of these files: its name, with as many of its directories as tell it from the others.
fn room_of(index: usize, files: &[Vec<String>]) -> Result<String, String> {
    let file = &files[index];
    let mut others = files.iter().enumerate().filter(|(at, _)| *at != index);
    if others.any(|(_, other)| other == file) {
        return Err(format!("/{} is named twice", file.join("/")));
    }
    let is_unique = |suffix: &&[String]| {
        let mut others = files.iter().enumerate().filter(|(at, _)| *at != index);
        others.all(|(_, other)| !other.ends_with(suffix))
    };
    let mut suffixes = (0..file.len()).rev().map(|from| &file[from..]);
    Ok(suffixes.find(is_unique).unwrap_or(file).join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms(arguments: &[&str]) -> Result<Vec<String>, String> {
        let arguments: Vec<_> = arguments.iter().map(PathBuf::from).collect();
        let commands = ["listen", "send", "man", "completions"];
        let files = FollowedFiles::new(&arguments, &commands).map_err(|error| error.to_string())?;
        Ok(files.rooms().map(|room| room.as_str().to_owned()).collect())
    }

    #[test]
    fn room_of_a_file_is_its_shortest_name_that_no_other_has() {
        for (arguments, names) in [
            (&["/var/log/a.log"][..], &["a.log"][..]),
            (&["a.log", "-", "b.log"], &["a.log", "b.log"]),
            (&["/x/web/a.log", "/x/db/a.log"], &["web/a.log", "db/a.log"]),
            (&["/1/w/a", "/2/w/a", "/1/d/a"], &["1/w/a", "2/w/a", "d/a"]),
            // No directory tells the first from the second.
            (&["/a.log", "/x/a.log"], &["a.log", "x/a.log"]),
            (&["/x/./y/../a.log", "/z/a.log"], &["x/a.log", "z/a.log"]),
            (&["/x/access log: 1"], &["access log: 1"]),
        ] {
            assert_eq!(rooms(arguments).unwrap(), names, "{arguments:?}");
        }
        let own = std::env::current_dir().unwrap();
        let own = own.file_name().unwrap().to_str().unwrap();
        let both = rooms(&["a.log", "/x/a.log"]).unwrap();
        assert_eq!(both, [format!("{own}/a.log"), "x/a.log".to_owned()]);
    }

    #[test]
    fn argument_that_resembles_a_command_or_url_is_refused() {
        for (arguments, said) in [
            (&["ws://127.0.0.1:1/"][..], "'listen ws://127.0.0.1:1/'"),
            (&["lisen", "ws://127.0.0.1:1/"], "'listen'"),
            (&["hear", "ws://127.0.0.1:1/"], "'hear' is no command"),
            (&["sned"], "'send'"),
            (&["completion"], "'completions'"),
            (&["/"], "directory"),
            (&["src"], "directory"),
            (&["/x/a.log", "/x/y/../a.log"], "twice"),
            (&[""], "empty"),
        ] {
            let error = rooms(arguments).unwrap_err();
            assert!(error.contains(said), "{arguments:?}: {error}");
        }
        let long = format!("/x/{}", "x".repeat(241));
        let error = rooms(&[&long]).unwrap_err();
        assert!(error.contains("240 bytes"), "{error}");
        for name in [
            "./lisen", "log", "messages", "list.log", "main.log", "syslog",
        ] {
            assert!(rooms(&[name]).is_ok(), "{name}");
        }
    }
}
