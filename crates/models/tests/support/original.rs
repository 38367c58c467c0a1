//! Stability's names of a UNet, the other way round from what the program does.

/// Layers of a residual block, diffusers' name first.
const RESNET: [(&str, &str); 6] = [
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("time_emb_proj.", "emb_layers.1."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("conv_shortcut.", "skip_connection."),
];

const OUTSIDE: [(&str, &str); 7] = [
    ("time_embedding.linear_1.", "time_embed.0."),
    ("time_embedding.linear_2.", "time_embed.2."),
    ("add_embedding.linear_1.", "label_emb.0.0."),
    ("add_embedding.linear_2.", "label_emb.0.2."),
    ("conv_in.", "input_blocks.0.0."),
    ("conv_norm_out.", "out.0."),
    ("conv_out.", "out.2."),
];

fn exchange(key: &str, names: &[(&str, &str)]) -> Option<String> {
    names.iter().find_map(|(from, to)| Some(format!("{to}{}", key.strip_prefix(from)?)))
}

/// Stability's name of a tensor that diffusers calls `key`, in a UNet whose levels going down have `resnets` residual blocks each;
/// `attends` says whether an up block does.
pub fn unet_key(key: &str, resnets: usize, attends: impl Fn(usize) -> bool) -> String {
    if let Some(key) = exchange(key, &OUTSIDE) {
        return key;
    }
    let parts: Vec<&str> = key.splitn(5, '.').collect();
    let number = |i: usize| -> usize { parts[i].parse().unwrap() };
    let resnet = |layer: &str| exchange(layer, &RESNET).unwrap();
    if parts[0] == "mid_block" {
        let parts: Vec<&str> = key.splitn(4, '.').collect();
        return match parts[1] {
            "attentions" => format!("middle_block.1.{}", parts[3]),
            _ => format!("middle_block.{}.{}", 2 * number(2), resnet(parts[3])),
        };
    }
    let (level, place, layer) = (number(1), number(3), parts[4]);
    match (parts[0], parts[2]) {
        ("down_blocks", kind) => {
            let block = 1 + level * (resnets + 1);
            match kind {
                "resnets" => format!("input_blocks.{}.0.{}", block + place, resnet(layer)),
                "attentions" => format!("input_blocks.{}.1.{layer}", block + place),
                _ => format!("input_blocks.{}.0.op.{}", block + resnets, layer.strip_prefix("conv.").unwrap()),
            }
        }
        (_, kind) => {
            let block = level * (resnets + 1);
            match kind {
                "resnets" => format!("output_blocks.{}.0.{}", block + place, resnet(layer)),
                "attentions" => format!("output_blocks.{}.1.{layer}", block + place),
                _ => format!("output_blocks.{}.{}.{layer}", block + resnets, if attends(level) { 2 } else { 1 }),
            }
        }
    }
}
