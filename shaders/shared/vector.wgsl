// Cells: one element, or four consecutive ones where the innermost extent allows it (feature `vec4`).

import package::shared::activation::{activate, activate4, gelu4};
import package::shared::storage::elem;

@if(vec4) alias cell = vec4<elem>;
@else alias cell = elem;

// A cell in the precision that kernels compute with.
@if(vec4) alias real = vec4<f32>;
@else alias real = f32;

// Sum and largest of a cell's elements.
@if(vec4) fn total(x: vec4<f32>) -> f32 { return (x.x + x.y) + (x.z + x.w); }
@else fn total(x: f32) -> f32 { return x; }

@if(vec4) fn largest(x: vec4<f32>) -> f32 { return max(max(x.x, x.y), max(x.z, x.w)); }
@else fn largest(x: f32) -> f32 { return x; }

@if(vec4) fn activate_cell(x: vec4<f32>) -> vec4<f32> { return activate4(x); }
@else fn activate_cell(x: f32) -> f32 { return activate(x); }

@if(vec4) fn gelu_cell(x: vec4<f32>) -> vec4<f32> { return gelu4(x); }
@else fn gelu_cell(x: f32) -> f32 { return gelu4(vec4(x)).x; }
