//! Cooperative matrices of f16 that lie in memory as units of 16 bytes.
//!
//! Copies of 16 bytes are the widest that GPUs have, and WGSL has no vector of eight f16. It can say `vec4<f32>` for the same bytes, but takes the
//! component type of a matrix that is loaded from what the pointer points to; SPIR-V does not: `OpCooperativeMatrixLoadKHR` takes any scalar
//! or vector, and its stride counts those. So a shader with the feature `packed` declares its arrays as `vec4<f32>` and its factors
//! (uses A and B) as matrices of f32, and here they become matrices of f16.

/// The first words of a module: magic number, version, generator, bound of the ids, schema.
const HEADER: usize = 5;
/// The place of the bound there.
const BOUND: usize = 3;

const OP_CAPABILITY: u32 = 17;
const OP_TYPE_FLOAT: u32 = 22;
const OP_CONSTANT: u32 = 43;
const OP_CONSTANT_COMPOSITE: u32 = 44;
const OP_COMPOSITE_CONSTRUCT: u32 = 80;
const OP_MATRIX_TIMES_SCALAR: u32 = 143;
const OP_TYPE_COOPERATIVE_MATRIX: u32 = 4456;
/// Every instruction that declares a type is one of these or comes after one.
const FIRST_TYPES: std::ops::RangeInclusive<u32> = 19..=39;
const CAPABILITY_FLOAT16: u32 = 9;
/// Uses of cooperative matrices as factors, A and B; 2 are sums.
const FACTORS: std::ops::RangeInclusive<u32> = 0..=1;

/// The instructions of a module, each with its number.
fn instructions(words: &[u32]) -> Result<Vec<(u32, &[u32])>, String> {
    let mut rest = words.get(HEADER..).ok_or("a SPIR-V module without a header")?;
    let mut found = Vec::new();
    while let Some(&first) = rest.first() {
        let length = (first >> 16) as usize;
        let (instruction, next) =
            rest.split_at_checked(length).filter(|_| length > 0).ok_or("a SPIR-V module that is cut off")?;
        found.push((first & 0xFFFF, instruction));
        rest = next;
    }
    Ok(found)
}

fn is_half(op: u32, instruction: &[u32]) -> bool {
    op == OP_TYPE_FLOAT && matches!(instruction, [_, _, 16])
}

/// A module whose cooperative matrices with uses A and B, of f32, are of f16. All else stays as it is, but for the declaration of f16, which
/// comes before all types, since it has to be there before it is used.
///
/// # Errors
/// A module that is cut off, whose factors are not of f32, or that makes factors of numbers: what they are made of would have to change, too.
pub(crate) fn with_half_factors(words: &[u32]) -> Result<Vec<u32>, String> {
    let all = instructions(words)?;
    let find = |test: &dyn Fn(u32, &[u32]) -> bool| all.iter().find(|(op, i)| test(*op, i)).map(|(_, i)| *i);
    let single = find(&|op, i| op == OP_TYPE_FLOAT && matches!(i, [_, _, 32])).map(|i| i[1]);
    let constant = |id: u32| find(&|op, i| op == OP_CONSTANT && i.get(2) == Some(&id)).and_then(|i| i.get(3)).copied();

    let declared = find(&is_half).map(|i| i[1]);
    let half = declared.unwrap_or(words[BOUND]);
    let able = find(&|op, i| op == OP_CAPABILITY && i.get(1) == Some(&CAPABILITY_FLOAT16)).is_some();

    let mut out = words[..HEADER].to_vec();
    out[BOUND] = words[BOUND].max(half + 1);
    let mut factors = Vec::new();
    let (mut capable, mut placed) = (able, false);
    for (op, instruction) in &all {
        if !capable && *op == OP_CAPABILITY {
            out.extend([2 << 16 | OP_CAPABILITY, CAPABILITY_FLOAT16]);
            capable = true;
        }
        if !placed && FIRST_TYPES.contains(op) {
            out.extend([3 << 16 | OP_TYPE_FLOAT, half, 16]);
            placed = true;
        }
        match (*op, *instruction) {
            (op, i) if is_half(op, i) => {}
            (OP_TYPE_COOPERATIVE_MATRIX, &[first, id, component, scope, rows, columns, used]) => {
                let mut component = component;
                if constant(used).is_some_and(|used| FACTORS.contains(&used)) {
                    if Some(component) != single {
                        return Err("a packed shader has factors that are not of f32".into());
                    }
                    factors.push(id);
                    component = half;
                }
                out.extend([first, id, component, scope, rows, columns, used]);
            }
            (OP_CONSTANT_COMPOSITE | OP_COMPOSITE_CONSTRUCT | OP_MATRIX_TIMES_SCALAR, i)
                if i.get(1).is_some_and(|ty| factors.contains(ty)) =>
            {
                return Err("a packed shader makes factors of numbers".into());
            }
            (_, i) => out.extend_from_slice(i),
        }
    }
    match factors.is_empty() {
        true => Err("a packed shader without cooperative matrices".into()),
        false => Ok(out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spirv::{RuntimeChecks, translate};

    /// A product of 16 x 16 by 16 x 16; `y` is `result`.
    fn product(factor: &str, unit: &str, result: &str, body: &str) -> String {
        format!(
            "enable f16;
            enable wgpu_cooperative_matrix;
            @group(0) @binding(0) var<storage, read> x: array<{unit}>;
            @group(0) @binding(1) var<storage, read_write> y: array<{result}>;
            var<workgroup> tile: array<{unit}, 64>;
            var<workgroup> sums: array<vec4<f32>, 64>;
            override STRIDE: u32 = 2u;
            @compute @workgroup_size(32) fn main(@builtin(local_invocation_index) i: u32) {{
                tile[i] = x[i];
                tile[i + 32u] = x[i + 32u];
                workgroupBarrier();
                let stride = STRIDE;
                let a = coopLoadT<coop_mat16x16<{factor}, A>>(&tile[0], stride);
                let b = coopLoadT<coop_mat16x16<{factor}, B>>(&tile[32], stride);
                var c = coop_mat16x16<f32, C>();
                {body}
                coopStoreT(c, &sums[0], 4u);
                workgroupBarrier();
                y[i] = {result}(sums[i]);
                y[i + 32u] = {result}(sums[i + 32u]);
            }}"
        )
    }

    const MULTIPLY: &str = "c = coopMultiplyAdd(a, b, c);";

    fn spirv(text: &str) -> Vec<u32> {
        translate(text, "main", &[], RuntimeChecks::None).unwrap().words
    }

    /// Instructions as text, to be compared.
    fn listed(words: &[u32]) -> Vec<String> {
        instructions(words).unwrap().into_iter().map(|(op, i)| format!("{op}: {:?}", &i[1..])).collect()
    }

    #[test]
    fn only_the_components_of_factors_and_the_place_of_f16_change() {
        let before = spirv(&product("f32", "vec4<f32>", "vec4<f16>", MULTIPLY));
        let after = with_half_factors(&before).unwrap();
        let half = instructions(&before).unwrap().iter().find(|(op, i)| is_half(*op, i)).unwrap().1[1];
        let (was, is) = (listed(&before), listed(&after));
        let declaration = format!("{OP_TYPE_FLOAT}: [{half}, 16]");
        let others = |list: &[String]| list.iter().filter(|i| **i != declaration).cloned().collect::<Vec<_>>();
        let changed: Vec<_> =
            others(&was).into_iter().zip(others(&is)).filter(|(before, after)| before != after).collect();
        assert_eq!(changed.len(), 2, "A and B: {changed:?}");
        for (before, after) in changed {
            let fields = |text: &str| text.split(['[', ',', ']']).map(|s| s.trim().to_owned()).collect::<Vec<_>>();
            let (before, mut expected) = (fields(&before), fields(&before));
            assert_eq!(before[0], format!("{OP_TYPE_COOPERATIVE_MATRIX}:"));
            expected[2] = half.to_string();
            assert_eq!(fields(&after), expected);
        }
        // Once, before its first use, and the header as it was.
        let places: Vec<_> = is.iter().enumerate().filter(|(_, i)| **i == declaration).map(|(at, _)| at).collect();
        assert!(matches!(places[..], [at] if FIRST_TYPES.contains(&instructions(&after).unwrap()[at + 1].0)));
        assert_eq!(after[..HEADER], before[..HEADER]);
        // StorageInputOutput16, which lavapipe, among others, does not let a device have.
        assert!(!is.contains(&format!("{OP_CAPABILITY}: [4436]")));
    }

    #[test]
    fn a_module_without_f16_gets_it() {
        let before = spirv(&product("f32", "vec4<f32>", "vec4<f32>", MULTIPLY));
        assert!(!instructions(&before).unwrap().iter().any(|(op, i)| is_half(*op, i)));
        let after = with_half_factors(&before).unwrap();
        let half = before[BOUND];
        assert_eq!(after[BOUND], half + 1);
        let is = listed(&after);
        assert!(is.contains(&format!("{OP_TYPE_FLOAT}: [{half}, 16]")));
        assert!(is.contains(&format!("{OP_CAPABILITY}: [{CAPABILITY_FLOAT16}]")));
        assert_eq!(is.len(), listed(&before).len() + 2);
    }

    #[test]
    fn modules_of_shaders_that_are_not_packed_stay_as_they_are() {
        let shader = |name, features: &[&str]| pulid_ops::shader(name, features).unwrap();
        let made = |shader: &pulid_ops::Shader| crate::spirv(shader, [], RuntimeChecks::None).unwrap().words;
        for features in [&["f16"][..], &["coop16", "f16"], &["coop16", "f16", "packed"]] {
            let shader = shader(if features.len() == 1 { "matmul_strided" } else { "matmul_cooperative" }, features);
            let plain = translate(shader.wgsl, shader.name, &[], RuntimeChecks::None).unwrap().words;
            match shader.is_packed() {
                true => assert_eq!(made(shader), with_half_factors(&plain).unwrap()),
                false => assert_eq!(made(shader), plain),
            }
        }
    }

    #[test]
    fn what_cannot_be_packed_is_refused() {
        let refused = |words: &[u32], part: &str| {
            let error = with_half_factors(words).unwrap_err();
            assert!(error.contains(part), "{error}");
        };
        refused(&spirv(&product("f16", "vec4<f16>", "vec4<f16>", MULTIPLY)), "not of f32");
        let scaled = "c = coopMultiplyAdd(a * 2.0, b, c);";
        refused(&spirv(&product("f32", "vec4<f32>", "vec4<f32>", scaled)), "of numbers");
        let plain = spirv(
            "@group(0) @binding(0) var<storage, read_write> y: array<f32>; @compute @workgroup_size(1) fn main() { y[0] = 1.0; }",
        );
        refused(&plain, "without cooperative matrices");
        refused(&plain[..=HEADER], "cut off");
        refused(&plain[..3], "without a header");
    }
}
