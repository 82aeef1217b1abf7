// Reads binary glTF as Mien writes it: meshes with named morph targets, a texture or colours, all in one file.
const NUMBERS = {
  5120: Int8Array, 5121: Uint8Array, 5122: Int16Array, 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array,
};
const WIDTHS = { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4 };
const MAGIC = 0x46546c67;

/** The parts of a face: positions in metres, triangles, colours or picture, the morph targets by name and their weights. */
export function readGlb(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < 20 || view.getUint32(0, true) !== MAGIC) throw new Error("not a binary glTF file");
  const length = view.getUint32(12, true);
  const tree = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 20, length)));
  const file = { tree, buffer, start: 20 + length + 8 };
  const parts = [], weights = {};
  for (const mesh of tree.meshes) {
    const names = mesh.extras?.targetNames ?? [];
    for (const primitive of mesh.primitives) parts.push(readPart(file, primitive, names));
    (mesh.weights ?? []).forEach((weight, place) => { if (weight && names[place]) weights[names[place]] = weight; });
  }
  const names = [...new Set(parts.flatMap((part) => part.targets.map((one) => one.name)))];
  return { asset: tree.asset, parts, names, weights };
}

function readPart(file, primitive, names) {
  const { attributes } = primitive;
  const positions = floats(file, attributes.POSITION);
  const count = positions.length / 3;
  const triangles = "indices" in primitive ? whole(file, primitive.indices) : Uint32Array.from({ length: count }, (_, i) => i);
  const colours = "COLOR_0" in attributes ? threeOf(floats(file, attributes.COLOR_0), count) : null;
  const texture = "TEXCOORD_0" in attributes ? floats(file, attributes.TEXCOORD_0) : null;
  const targets = (primitive.targets ?? []).map((target, place) => ({
    name: names[place] ?? `target ${place}`,
    ...moved(floats(file, target.POSITION)),
  }));
  const material = file.tree.materials?.[primitive.material]?.pbrMetallicRoughness ?? {};
  return {
    positions, triangles, colours, texture, targets,
    tint: (material.baseColorFactor ?? [1, 1, 1, 1]).slice(0, 3),
    picture: texture && material.baseColorTexture ? picture(file, material.baseColorTexture.index) : null,
  };
}

/** What a target moves, without the vertices that it leaves alone: most of a face stays where it is. */
function moved(values) {
  const vertices = [];
  for (let i = 0; i < values.length; i += 3) {
    if (values[i] || values[i + 1] || values[i + 2]) vertices.push(i / 3);
  }
  const offsets = new Float32Array(vertices.length * 3);
  vertices.forEach((vertex, place) => offsets.set(values.subarray(3 * vertex, 3 * vertex + 3), 3 * place));
  return { vertices: Uint32Array.from(vertices), offsets };
}

function picture({ tree, buffer, start }, index) {
  const image = tree.images[tree.textures[index].source];
  const view = tree.bufferViews[image.bufferView];
  return new Blob([new Uint8Array(buffer, start + (view.byteOffset ?? 0), view.byteLength)], { type: image.mimeType });
}

function threeOf(values, count) {
  const width = values.length / count;
  if (width === 3) return values;
  const three = new Float32Array(3 * count);
  for (let i = 0; i < count; i++) three.set(values.subarray(width * i, width * i + 3), 3 * i);
  return three;
}

/** An accessor as floats: normalised integers become shares, sparse values are laid over the others. */
function floats(file, index) {
  const accessor = file.tree.accessors[index];
  const width = WIDTHS[accessor.type];
  const result = new Float32Array(accessor.count * width);
  const scale = accessor.normalized ? 1 / { 5120: 127, 5121: 255, 5122: 32767, 5123: 65535 }[accessor.componentType] : 1;
  if ("bufferView" in accessor) {
    const values = elements(file, accessor.bufferView, accessor.byteOffset ?? 0, accessor.componentType, accessor.count, width);
    for (let i = 0; i < result.length; i++) result[i] = values[i] * scale;
  }
  if (accessor.sparse) {
    const { count, indices, values } = accessor.sparse;
    const places = elements(file, indices.bufferView, indices.byteOffset ?? 0, indices.componentType, count, 1);
    const laid = elements(file, values.bufferView, values.byteOffset ?? 0, accessor.componentType, count, width);
    for (let i = 0; i < count; i++) {
      for (let j = 0; j < width; j++) result[places[i] * width + j] = laid[i * width + j] * scale;
    }
  }
  return result;
}

function whole(file, index) {
  const accessor = file.tree.accessors[index];
  return Uint32Array.from(
    elements(file, accessor.bufferView, accessor.byteOffset ?? 0, accessor.componentType, accessor.count, 1));
}

function elements({ tree, buffer, start }, viewIndex, offset, kind, count, width) {
  const view = tree.bufferViews[viewIndex];
  const Kind = NUMBERS[kind];
  const size = Kind.BYTES_PER_ELEMENT * width;
  const stride = view.byteStride ?? size;
  const first = start + (view.byteOffset ?? 0) + offset;
  const values = new Kind(count * width);
  const bytes = new Uint8Array(values.buffer);
  const source = new Uint8Array(buffer);
  if (stride === size) bytes.set(source.subarray(first, first + count * size));
  else for (let i = 0; i < count; i++) bytes.set(source.subarray(first + i * stride, first + i * stride + size), i * size);
  return values;
}
