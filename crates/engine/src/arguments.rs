//! The command line: two commands and a few numbers, read by hand, for the worker has one caller.
//! Decides only whether it makes sense. Called by `main`.

use std::ffi::OsString;
use std::path::PathBuf;

/// What `--help` says.
pub(crate) const USAGE: &str = "\
guan-engine serve --model FILE --name NAME (--listen-fd N | --listen PATH)
            [--ready-fd N] [--context TOKENS] [--threads N] [--parallel N]
    Serves a GGUF model on a Unix socket. One line of JSON on the ready descriptor
    (or stdout) says when, or why not.
    --context   tokens of one sequence, prompt and answer (default: the model's, at most 8192)
    --threads   threads that compute (default: the cores this process may use)
    --parallel  sequences at once (default: 4)
guan-engine describe FILE
    Prints what a GGUF file says about itself, as JSON. Loads no weights.";

/// What to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    Help,
    Describe(PathBuf),
    Serve(Serve),
}

/// How to serve.
#[derive(Debug, PartialEq)]
pub(crate) struct Serve {
    pub(crate) model: PathBuf,
    pub(crate) name: String,
    pub(crate) listen: Listen,
    pub(crate) ready_fd: Option<i32>,
    pub(crate) context: Option<u32>,
    pub(crate) threads: Option<u32>,
    pub(crate) parallel: u32,
}

/// Where the socket comes from.
#[derive(Debug, PartialEq)]
pub(crate) enum Listen {
    /// A listening socket the parent process passed.
    Inherited(i32),
    /// A socket to bind before the fence.
    Path(PathBuf),
}

/// What is wrong with the command line.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum Misused {
    #[error("{0} is not known; see guan-engine --help")]
    Unknown(String),
    #[error("{0} is missing; see guan-engine --help")]
    Missing(&'static str),
    #[error("{name} must be a number from {low} to {high}")]
    Number { name: String, low: u32, high: u32 },
}

/// Sequences one worker may run at once; llama.cpp has room for 256.
const MOST_PARALLEL: u32 = 64;

/// Reads the arguments after the program's name.
///
/// # Errors
/// [`Misused`], which says what is wrong.
pub(crate) fn parse(mut given: impl Iterator<Item = OsString>) -> Result<Command, Misused> {
    let command = given
        .next()
        .ok_or(Misused::Missing("a command (serve or describe)"))?;
    match command.to_str() {
        Some("--help" | "-h" | "help") => Ok(Command::Help),
        Some("describe") => {
            let file = given
                .next()
                .ok_or(Misused::Missing("the file to describe"))?;
            match given.next() {
                None => Ok(Command::Describe(file.into())),
                Some(more) => Err(unknown(&more)),
            }
        }
        Some("serve") => serve(given),
        _ => Err(unknown(&command)),
    }
}

fn serve(mut given: impl Iterator<Item = OsString>) -> Result<Command, Misused> {
    let (mut model, mut name, mut listen, mut ready_fd) = (None, None, None, None);
    let (mut context, mut threads, mut parallel) = (None, None, None);
    while let Some(option) = given.next() {
        let mut value = |what| given.next().ok_or(Misused::Missing(what));
        match option.to_str() {
            Some("--model") => model = Some(PathBuf::from(value("the file after --model")?)),
            Some("--name") => name = value("the name after --name")?.into_string().ok(),
            Some("--listen") => {
                listen = Some(Listen::Path(value("the path after --listen")?.into()));
            }
            Some(it @ "--listen-fd") => {
                listen = Some(Listen::Inherited(descriptor(it, &value("its number")?)?));
            }
            Some(it @ "--ready-fd") => ready_fd = Some(descriptor(it, &value("its number")?)?),
            Some(it @ "--context") => {
                context = Some(number(it, &value("its number")?, 64, 16 << 20)?);
            }
            Some(it @ "--threads") => threads = Some(number(it, &value("its number")?, 1, 512)?),
            Some(it @ "--parallel") => {
                parallel = Some(number(it, &value("its number")?, 1, MOST_PARALLEL)?);
            }
            _ => return Err(unknown(&option)),
        }
    }
    Ok(Command::Serve(Serve {
        model: model.ok_or(Misused::Missing("--model"))?,
        name: name.ok_or(Misused::Missing("--name"))?,
        listen: listen.ok_or(Misused::Missing("--listen-fd or --listen"))?,
        ready_fd,
        context,
        threads,
        parallel: parallel.unwrap_or(4),
    }))
}

/// A descriptor above the three that every process has.
fn descriptor(name: &str, value: &OsString) -> Result<i32, Misused> {
    let (low, high) = (3, 65_535);
    let misused = || Misused::Number {
        name: name.to_owned(),
        low,
        high,
    };
    i32::try_from(number(name, value, low, high)?).map_err(|_large| misused())
}

fn number(name: &str, value: &OsString, low: u32, high: u32) -> Result<u32, Misused> {
    let number = value.to_str().and_then(|text| text.parse().ok());
    number
        .filter(|number| (low..=high).contains(number))
        .ok_or_else(|| Misused::Number {
            name: name.to_owned(),
            low,
            high,
        })
}

fn unknown(argument: &OsString) -> Misused {
    Misused::Unknown(argument.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, Misused> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_supervisors_line_is_understood() {
        let line = "serve --model m.gguf --name q --listen-fd 3 --ready-fd 4 --context 4096 \
                    --threads 2 --parallel 8";
        let Ok(Command::Serve(serve)) = read(line) else {
            panic!("refused")
        };
        assert_eq!(serve.listen, Listen::Inherited(3));
        assert_eq!((serve.ready_fd, serve.context), (Some(4), Some(4096)));
        assert_eq!((serve.threads, serve.parallel), (Some(2), 8));
    }

    #[test]
    fn wrong_lines_are_refused() {
        for line in [
            "",
            "fly",
            "describe",
            "describe a b",
            "serve --model m --name q",
            "serve --model m --name q --listen-fd 2",
            "serve --model m --name q --listen s --parallel 0",
            "serve --model m --name q --listen s --parallel x",
            "serve --model m --name q --listen s --fast",
            "serve --model",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
