//! GGUF's names of tensors.

/// Name of the embedding.
pub(super) const EMBEDDING: &str = "token_embd.weight";
/// Name of the output projection, which an untied model has.
pub(super) const OUTPUT: &str = "output.weight";
/// Name of the divisors of the rotary frequencies.
pub(super) const FACTORS: &str = "rope_freqs.weight";

/// Hugging Face's name of a part of a block, and GGUF's.
const IN_BLOCK: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// GGUF's name of the part that Hugging Face calls `hf`.
pub(super) fn gguf_name(hf: &str) -> String {
    let known = match hf {
        "model.embed_tokens.weight" => Some(EMBEDDING.into()),
        "model.norm.weight" => Some("output_norm.weight".into()),
        "lm_head.weight" => Some(OUTPUT.into()),
        _ => in_block(hf),
    };
    known.unwrap_or_else(|| panic!("`{hf}` has no name in GGUF"))
}

fn in_block(hf: &str) -> Option<String> {
    let (layer, rest) = hf.strip_prefix("model.layers.")?.split_once('.')?;
    let part = rest.strip_suffix(".weight")?;
    let (_, name) = IN_BLOCK.iter().find(|(hf, _)| *hf == part)?;
    Some(format!("blk.{layer}.{name}.weight"))
}

/// Whether the rows of the part that Hugging Face calls `hf` are in the interleaved order in GGUF.
pub(super) fn is_interleaved(hf: &str) -> bool {
    hf.ends_with(".q_proj.weight") || hf.ends_with(".k_proj.weight")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::Config;

    #[test]
    fn every_part_has_a_name_of_its_own() {
        let table = Config::preset("3m").unwrap().params();
        let parts: Vec<_> = table.iter().flat_map(|s| &s.parts).collect();
        let names: BTreeSet<String> = parts.iter().map(|p| gguf_name(&p.hf_name)).collect();
        assert_eq!(names.len(), parts.len());
        assert!(names.contains("blk.6.attn_output.weight") && names.contains("output_norm.weight"));
        assert_eq!(parts.iter().filter(|p| is_interleaved(&p.hf_name)).count(), 2 * 7);
    }
}
