//! `llamero inspect`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use clap::Args;
use llamero_cpu::Cpu;
use llamero_infer::{open_tokenizer, resolve_model};
use llamero_model::gguf::{GgufFile, GgufValue};
use llamero_model::weights::{self, Layout, TensorInfo};
use llamero_model::{Config, Group, PRESETS, ParamSpec, Weights};
use llamero_tensor::{DType, KV_PAGE};
use serde::Serialize;
use serde_json::Value;

use super::folder::verify;
use super::{print, print_json};
use crate::report::format::{bytes, count};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  llamero inspect 8b --context 8192\n  llamero inspect runs/quickstart --json\n  \
    llamero inspect model.gguf --tensors"
)]
pub(crate) struct InspectArgs {
    /// A preset (8b, 70b, 405b, 1b, 3b, 300k, 1m, 3m, 8m, 25m, 60m), a run, artifact, Hugging Face or Meta folder, or a GGUF
    /// file.
    model: String,
    /// Tokens of context that the memory is for; the model's longest where absent.
    #[arg(long, value_name = "TOKENS", value_parser = context_size)]
    context: Option<usize>,
    /// List every tensor; of a preset, its parameters in bf16.
    #[arg(long)]
    tensors: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Inspection {
    model: String,
    /// `preset`, `huggingface`, `meta` or `gguf`.
    format: &'static str,
    parameters: u64,
    active_parameters: u64,
    weight_bytes_bf16: u64,
    kv_bytes_per_token_bf16: u64,
    /// Weights as the files hold them; in bf16 for a preset.
    weight_bytes: u64,
    memory: MemoryAt,
    #[serde(flatten)]
    config: Config,
    /// Bytes of the tensors in each encoding.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    encodings: BTreeMap<String, u64>,
    /// What a GGUF file says about itself; of an array, its length and type.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<Listed>>,
}

/// What the engine holds of a model and of one sequence, as `generate` opens it.
#[derive(Serialize)]
struct MemoryAt {
    context: usize,
    /// What it computes in, and keys and values are kept in.
    dtype: &'static str,
    weight_bytes: u64,
    /// Of whole pages.
    kv_bytes: u64,
    bytes: u64,
}

impl MemoryAt {
    fn new(config: &Config, context: usize, dtype: DType, weight_bytes: u64) -> Self {
        let positions = context.next_multiple_of(KV_PAGE) as u64;
        let kv_bytes = config.kv_bytes_per_token(held_bytes(dtype)) * positions;
        Self { context, dtype: dtype.name(), weight_bytes, kv_bytes, bytes: weight_bytes + kv_bytes }
    }
}

/// Bytes of an element in memory: a processor without products of bf16 keeps it widened.
fn held_bytes(dtype: DType) -> usize {
    let widens = || Cpu::new(1).is_ok_and(|cpu| !cpu.packs_pairs());
    if dtype == DType::Bf16 && widens() { DType::F32.bytes() } else { dtype.bytes() }
}

/// Bytes of a model's weights in memory: blocks stay blocks where every part of a matrix has them and the dtype is bf16.
fn resident_bytes(weights: &dyn Weights) -> Result<u64> {
    let dtype = weights.dtype();
    let held = held_bytes(dtype);
    let mut sum = 0;
    for spec in weights.config().params() {
        let (mut first, mut blocks) = (0, Some(0));
        for part in &spec.parts {
            let row = weights.rows(&spec, first..first + 1)?;
            let encoding = row.first().map(|run| run.encoding).filter(|e| e.is_quantized());
            let bytes = encoding.and_then(|e| e.row_bytes(spec.shape.cols)).map(|bytes| bytes * part.rows);
            blocks = blocks.zip(bytes).map(|(sum, bytes)| sum + bytes);
            first += part.rows;
        }
        let blocks = blocks.filter(|_| dtype == DType::Bf16 && spec.group() != Group::Norm);
        sum += blocks.unwrap_or(spec.shape.elements() * held) as u64;
    }
    Ok(sum)
}

#[derive(Serialize)]
struct Listed {
    name: String,
    shape: Vec<usize>,
    encoding: String,
    bytes: u64,
    file: String,
}

impl From<TensorInfo> for Listed {
    fn from(t: TensorInfo) -> Self {
        let file = t.file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Self { name: t.name, shape: t.shape, encoding: t.encoding, bytes: t.bytes, file }
    }
}

pub(crate) fn inspect(args: &InspectArgs) -> Result<()> {
    let inspection = look(args)?;
    if args.json { print_json(&inspection) } else { show(&inspection) }
}

fn look(args: &InspectArgs) -> Result<Inspection> {
    if let Some(config) = Config::preset(&args.model) {
        let bytes = held_bytes(DType::Bf16) as u64 * config.num_params();
        let memory = MemoryAt::new(&config, context(args, &config)?, DType::Bf16, bytes);
        let mut own = inspection(args, "preset", config, memory);
        own.tensors = args.tensors.then(|| own.config.params().iter().map(of_preset).collect());
        return Ok(own);
    }
    let path = Path::new(&args.model);
    if !path.exists() {
        bail!(
            "`{}` is neither a file, a folder nor a preset; presets are {}",
            args.model,
            PRESETS.join(", ")
        );
    }
    let path = resolve_model(path)?;
    verify(&path)?;
    let weights = weights::open(&path)?;
    let (format, metadata) = match Layout::of(&path)? {
        Some(Layout::Gguf(file)) => ("gguf", GgufFile::open(&file)?.metadata().clone()),
        Some(Layout::Meta) => ("meta", BTreeMap::new()),
        _ => ("huggingface", BTreeMap::new()),
    };
    let config = weights.config();
    let (context, bytes) = (context(args, config)?, resident_bytes(&*weights)?);
    let memory = MemoryAt::new(config, context, weights.dtype(), bytes);
    let mut own = inspection(args, format, config.clone(), memory);
    own.weight_bytes = weights.stored_bytes();
    own.metadata = metadata.iter().map(|(key, value)| (key.clone(), said(value))).collect();
    warn_of_missing_bytes(&path);
    let tensors = weights.tensors();
    for tensor in &tensors {
        *own.encodings.entry(tensor.encoding.clone()).or_default() += tensor.bytes;
    }
    own.tensors = args.tensors.then(|| tensors.into_iter().map(Listed::from).collect());
    Ok(own)
}

/// Says which bytes of a text the tokenizer leaves out. A model without a tokenizer that can be read leaves nothing to say.
fn warn_of_missing_bytes(path: &Path) {
    let missing = open_tokenizer(path).map_or_else(|_| Vec::new(), |tokenizer| tokenizer.missing_bytes());
    if !missing.is_empty() {
        let shown: Vec<_> = missing.iter().map(|byte| format!("0x{byte:02x}")).collect();
        say!(
            "warning: the vocabulary has no token for the bytes {}: they are left out of texts",
            shown.join(", ")
        );
    }
}

/// A parameter that is in no file.
fn of_preset(spec: &ParamSpec) -> Listed {
    let shape = match spec.group() {
        Group::Norm => vec![spec.shape.elements()],
        Group::Vocabulary | Group::Matrix => vec![spec.shape.rows, spec.shape.cols],
    };
    let bytes = 2 * spec.shape.elements() as u64;
    Listed { name: spec.name.clone(), shape, encoding: "BF16".into(), bytes, file: String::new() }
}

/// A length of context on the command line.
fn context_size(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&tokens| tokens > 0)
        .ok_or_else(|| "it is not a whole number from 1 on".to_owned())
}

/// A value of the metadata: numbers as numbers.
fn said(value: &GgufValue) -> Value {
    match value {
        GgufValue::String(text) => text.as_str().into(),
        GgufValue::Bool(x) => (*x).into(),
        GgufValue::I8(x) => (*x).into(),
        GgufValue::I16(x) => (*x).into(),
        GgufValue::I32(x) => (*x).into(),
        GgufValue::I64(x) => (*x).into(),
        other => match (other.as_u64(), other.as_f64()) {
            (Some(x), _) => x.into(),
            (None, Some(x)) if x.is_finite() => x.into(),
            _ => other.describe().into(),
        },
    }
}

/// Tokens of context to tell the memory of.
fn context(args: &InspectArgs, config: &Config) -> Result<usize> {
    let context = args.context.unwrap_or(config.context);
    if context > config.context {
        bail!("`--context` is {context}, but the model's longest is {}", config.context);
    }
    Ok(context)
}

fn inspection(args: &InspectArgs, format: &'static str, config: Config, memory: MemoryAt) -> Inspection {
    Inspection {
        model: args.model.clone(),
        format,
        parameters: config.num_params(),
        active_parameters: config.num_active_params(),
        weight_bytes_bf16: 2 * config.num_params(),
        kv_bytes_per_token_bf16: config.kv_bytes_per_token(2),
        weight_bytes: memory.weight_bytes,
        memory,
        config,
        encodings: BTreeMap::new(),
        metadata: BTreeMap::new(),
        tensors: None,
    }
}

fn show(inspection: &Inspection) -> Result<()> {
    let Inspection { parameters, config: c, memory, .. } = inspection;
    print(format!("{}: {} parameters ({parameters})", inspection.model, count(*parameters)))?;
    print(format!(
        "  width {}, {} layers, {} heads of {}, {} key/value heads",
        c.dim, c.layers, c.heads, c.head_dim, c.kv_heads
    ))?;
    let scaling = c
        .rope_scaling
        .map_or_else(String::new, |s| format!(" stretched {} times from {}", s.factor, s.original_context));
    print(format!(
        "  feed-forward {}, vocabulary {}{}, context {}, RoPE base {}{scaling}",
        c.ffn,
        c.vocab,
        if c.tied { " (tied)" } else { "" },
        c.context,
        c.rope_theta
    ))?;
    if !inspection.encodings.is_empty() {
        let each: Vec<_> = inspection.encodings.iter().map(|(e, n)| format!("{e} {}", bytes(*n))).collect();
        print(format!("  {}: {}", inspection.format, each.join(", ")))?;
    }
    print(format!(
        "  memory: weights {}, keys and values of {} tokens {}, computed in {}",
        bytes(memory.weight_bytes),
        memory.context,
        bytes(memory.kv_bytes),
        memory.dtype
    ))?;
    for (key, value) in &inspection.metadata {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        print(format!("  {key} = {}", line(&value)))?;
    }
    for t in inspection.tensors.iter().flatten() {
        let shape: Vec<_> = t.shape.iter().map(usize::to_string).collect();
        print(format!("  {} {} [{}] {}", t.name, t.encoding, shape.join(", "), bytes(t.bytes)))?;
    }
    Ok(())
}

/// The beginning of a text, on one line.
fn line(text: &str) -> String {
    const MOST: usize = 80;
    let flat: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if flat.chars().count() <= MOST { flat } else { flat.chars().take(MOST).chain(['…']).collect() }
}
