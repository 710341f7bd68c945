//! Opens the model: checks the file, decides how much context fits into memory, loads it by
//! llama.cpp and says what was loaded. It never touches a request.
//! Called by `main` once, behind the fence; `describe` reads the header only.

use std::num::NonZeroU32;
use std::path::Path;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use serde::Serialize;

use crate::journal;

pub(crate) mod gguf;

use gguf::{Broken, Header};

/// Context of one sequence if nobody asks for another: more costs memory few chats need.
const USUAL_CONTEXT: u32 = 8192;
/// Prompt tokens that one batch step may hold, all sequences together. It bounds how long the
/// others wait for a step: llama.cpp can't be interrupted inside one.
pub(crate) const PROMPT_STEP: u32 = 128;

/// What the operator asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wishes {
    /// Tokens of one sequence, prompt and answer together.
    pub(crate) context: Option<u32>,
    /// Threads that compute.
    pub(crate) threads: u32,
    /// Sequences that run at once.
    pub(crate) parallel: u32,
    /// Bytes of memory this process may still take; read before the fence.
    pub(crate) memory: Option<u64>,
}

/// A model file as described by its own header; what `guan-engine describe` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Description {
    name: Option<String>,
    architecture: String,
    size_label: Option<String>,
    context_tokens: u64,
    parameters: u64,
    licence: Option<String>,
    file_type: Option<&'static str>,
}

/// What was loaded; the line on the ready descriptor.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Loaded {
    name: String,
    architecture: String,
    pub(crate) context_tokens: u32,
    parameters: u64,
    size_bytes: u64,
    licence: Option<String>,
    /// Unix seconds at which it was loaded.
    #[serde(skip)]
    since: u64,
}

impl Loaded {
    /// The name clients know it by.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Unix seconds at which it was loaded.
    pub(crate) fn since(&self) -> u64 {
        self.since
    }

    /// `system_fingerprint`: changes with the weights and with the engine.
    pub(crate) fn fingerprint(&self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        format!("guan-{version}-{:x}-{:x}", self.parameters, self.size_bytes)
    }
}

/// A loaded model and its sizes. The model lives as long as the process.
#[derive(Debug)]
pub(crate) struct Weights {
    backend: &'static LlamaBackend,
    pub(crate) model: &'static LlamaModel,
    pub(crate) loaded: Loaded,
    /// Cells of the key-value cache, shared by all sequences.
    pub(crate) cells: u32,
    /// Whether the prompt's cache of one sequence may be copied to another.
    pub(crate) copies: bool,
    pub(crate) template: Option<String>,
    wishes: Wishes,
}

/// Why the model can't be served. The message says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error(transparent)]
    File(#[from] Broken),
    #[error(
        "{path} needs {need} of memory and {have} are free; choose a smaller model, \
         or one with fewer bits a weight"
    )]
    TooLarge {
        path: String,
        need: String,
        have: String,
    },
    #[error(
        "a context of {context} tokens needs {need} beside the weights and {have} are free; \
         ask for a smaller context (--context)"
    )]
    Context {
        context: u32,
        need: String,
        have: String,
    },
    #[error("{path} can't be loaded: {cause}; try a newer Guan, or another GGUF of this model")]
    Refused { path: String, cause: String },
    #[error("no context of {context} tokens could be made: {cause}; ask for a smaller --context")]
    NoContext { context: u32, cause: String },
}

/// Reads the header of `path` and says what stands in it.
///
/// # Errors
/// [`Broken`], if the file isn't a whole GGUF.
pub(crate) fn describe(path: &Path) -> Result<Description, Broken> {
    let header = Header::read(path)?;
    Ok(Description {
        name: header.text("general.name").map(str::to_owned),
        architecture: header.architecture().to_owned(),
        size_label: header.text("general.size_label").map(str::to_owned),
        context_tokens: header.arch_number("context_length").unwrap_or(0),
        parameters: header.parameters,
        licence: header.text("general.license").map(str::to_owned),
        file_type: header.file_type(),
    })
}

/// Loads the model at `path` to be served as `name`.
///
/// # Errors
/// [`Unfit`], if the file is broken, too large for this machine, or unknown to llama.cpp.
pub(crate) fn load(path: &Path, name: &str, wishes: Wishes) -> Result<Weights, Unfit> {
    let header = Header::read(path)?;
    let shown = || path.display().to_string();
    if let Some(have) = wishes.memory
        && header.size_bytes > have
    {
        return Err(Unfit::TooLarge {
            path: shown(),
            need: in_gib(header.size_bytes),
            have: in_gib(have),
        });
    }
    let trained = header
        .arch_number("context_length")
        .and_then(|n| u32::try_from(n).ok());
    let context = fit_context(wishes.context, trained);
    let cells = fit_cells(&header, context, wishes)?;

    let refused = |cause: String| Unfit::Refused {
        path: shown(),
        cause,
    };
    let backend = LlamaBackend::init().map_err(|error| refused(error.to_string()))?;
    let model = LlamaModel::load_from_file(&backend, path, &LlamaModelParams::default())
        .map_err(|error| refused(journal::first_error().unwrap_or_else(|| error.to_string())))?;
    let window = header.arch_number("attention.sliding_window").unwrap_or(0);
    Ok(Weights {
        // A copied cell belongs to several sequences and a sliding window can't reuse it: the
        // window's small cache would run full. Recurrent state can't be copied in part at all.
        copies: window == 0 && !model.is_recurrent() && !model.is_hybrid(),
        loaded: Loaded {
            name: name.to_owned(),
            architecture: header.architecture().to_owned(),
            context_tokens: context,
            parameters: model.n_params(),
            size_bytes: header.size_bytes,
            licence: header.text("general.license").map(str::to_owned),
            since: crate::serve::unix_time(),
        },
        backend: Box::leak(Box::new(backend)),
        model: Box::leak(Box::new(model)),
        cells,
        template: header.text("tokenizer.chat_template").map(str::to_owned),
        wishes,
    })
}

impl Weights {
    /// Makes the one context all sequences run in.
    ///
    /// # Errors
    /// [`Unfit::NoContext`], when llama.cpp gets no memory for it.
    pub(crate) fn context(&self) -> Result<LlamaContext<'static>, Unfit> {
        let threads = i32::try_from(self.wishes.threads).unwrap_or(1);
        let batch = self.batch_tokens();
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(self.cells))
            .with_n_batch(batch)
            .with_n_ubatch(batch)
            .with_n_seq_max(self.wishes.parallel)
            .with_kv_unified(true)
            .with_swa_full(false)
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            .with_no_perf(true);
        self.model
            .new_context(self.backend, params)
            .map_err(|error| Unfit::NoContext {
                context: self.loaded.context_tokens,
                cause: journal::first_error().unwrap_or_else(|| error.to_string()),
            })
    }

    /// Tokens one batch may hold: the prompt's share and one of each sequence.
    pub(crate) fn batch_tokens(&self) -> u32 {
        PROMPT_STEP.saturating_add(self.wishes.parallel)
    }

    /// Sequences that may run at once.
    pub(crate) fn parallel(&self) -> u32 {
        self.wishes.parallel
    }
}

/// The wish, or [`USUAL_CONTEXT`]; never more than the model was trained for.
fn fit_context(wish: Option<u32>, trained: Option<u32>) -> u32 {
    let most = trained.filter(|n| *n > 0).unwrap_or(u32::MAX);
    wish.unwrap_or(USUAL_CONTEXT).clamp(1, most)
}

/// How many cells the cache gets: a whole context for each sequence, unless that would take more
/// than half of what the weights leave free; then as many as that half holds, but never fewer
/// than one context. Sequences share the cells, so a long one may use what the others don't.
fn fit_cells(header: &Header, context: u32, wishes: Wishes) -> Result<u32, Unfit> {
    let all = u64::from(context).saturating_mul(u64::from(wishes.parallel));
    let cells = match wishes.memory {
        None => all,
        Some(memory) => {
            let free = memory.saturating_sub(header.size_bytes);
            let cell = cell_bytes(header).max(1);
            let one = u64::from(context).saturating_mul(cell);
            if one > free {
                let (need, have) = (in_gib(one), in_gib(free));
                return Err(Unfit::Context {
                    context,
                    need,
                    have,
                });
            }
            all.min(free.div_euclid(2).div_euclid(cell).max(u64::from(context)))
        }
    };
    Ok(u32::try_from(cells.next_multiple_of(256)).unwrap_or(u32::MAX))
}

/// Bytes of one cell: a key and a value of 2 bytes in each layer. An upper bound: layers with a
/// sliding window take less.
fn cell_bytes(header: &Header) -> u64 {
    let number = |key: &str| header.arch_number(key);
    let layers = number("block_count").unwrap_or(0);
    let heads = number("attention.head_count").unwrap_or(1).max(1);
    let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
    let width = number("embedding_length").unwrap_or(0).div_euclid(heads);
    let key = number("attention.key_length").unwrap_or(width);
    let value = number("attention.value_length").unwrap_or(width);
    layers
        .saturating_mul(kv_heads)
        .saturating_mul(key.saturating_add(value))
        .saturating_mul(2)
}

fn in_gib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10).div_ceil(1 << 30);
    format!("{}.{} GiB", tenths.div_euclid(10), tenths.rem_euclid(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_is_the_wish_within_the_training() {
        assert_eq!(fit_context(None, Some(32768)), 8192);
        assert_eq!(fit_context(None, Some(2048)), 2048);
        assert_eq!(fit_context(Some(16384), Some(32768)), 16384);
        assert_eq!(fit_context(Some(65536), Some(32768)), 32768);
        assert_eq!(fit_context(None, None), 8192);
    }

    #[test]
    fn cells_shrink_before_they_eat_the_machine() {
        // without shape numbers a cell counts as one byte
        let mut header = Header::default();
        header.size_bytes = 1000;
        let wish = |memory| Wishes {
            context: None,
            threads: 1,
            parallel: 4,
            memory,
        };
        assert_eq!(fit_cells(&header, 1024, wish(None)).unwrap(), 4096);
        assert_eq!(fit_cells(&header, 1024, wish(Some(1 << 20))).unwrap(), 4096);
        assert_eq!(fit_cells(&header, 1024, wish(Some(5000))).unwrap(), 2048);
        assert_eq!(fit_cells(&header, 1024, wish(Some(2100))).unwrap(), 1024);
        assert!(matches!(
            fit_cells(&header, 1024, wish(Some(1500))),
            Err(Unfit::Context { context: 1024, .. })
        ));
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(in_gib(253_113_024), "0.3 GiB");
        assert_eq!(in_gib(4 << 30), "4.0 GiB");
    }
}
