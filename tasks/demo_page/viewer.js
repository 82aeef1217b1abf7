// Draws a face with WebGL and moves it by its morph targets: no library, so that it works without a network.
const VERTEX = `#version 300 es
uniform mat4 projection, view;
in vec3 position, normal, colour;
in vec2 texture_place;
out vec3 facing, seen, tint;
out vec2 place;
void main() {
  vec4 world = view * vec4(position, 1.0);
  seen = world.xyz;
  facing = mat3(view) * normal;
  tint = colour;
  place = texture_place;
  gl_Position = projection * world;
}`;

const FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D picture;
uniform bool has_picture, clay;
uniform vec3 base;
in vec3 facing, seen, tint;
in vec2 place;
out vec4 result;
vec3 linear(vec3 shown) { return mix(shown / 12.92, pow((shown + 0.055) / 1.055, vec3(2.4)), step(0.04045, shown)); }
vec3 shown(vec3 light) { return mix(12.92 * light, 1.055 * pow(light, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, light)); }
void main() {
  vec3 n = normalize(facing);
  if (!gl_FrontFacing) n = -n;
  vec3 skin = has_picture ? linear(texture(picture, place).rgb) : tint;
  vec3 albedo = clay ? vec3(0.42) : base * skin;
  vec3 to_eye = normalize(-seen);
  vec3 key = normalize(vec3(-0.45, 0.55, 0.75)), fill = normalize(vec3(0.8, 0.05, 0.45));
  float strength = clay ? 1.0 : 0.72;
  float light = 0.34 + 0.16 * n.y + strength * max(dot(n, key), 0.0) + 0.26 * max(dot(n, fill), 0.0);
  float gloss = 0.05 * pow(max(dot(n, normalize(key + to_eye)), 0.0), 24.0);
  result = vec4(shown(clamp(albedo * light + gloss, 0.0, 1.0)), 1.0);
}`;

const FIELD_OF_VIEW = (22 * Math.PI) / 180;

export class FaceViewer {
  /** A viewer that fills a canvas: drag turns, shift-drag moves, the wheel zooms, a double click puts all back. */
  constructor(canvas) {
    this.canvas = canvas;
    this.weights = {};
    this.parts = [];
    this.clay = false;
    this.centre = [0, 0, 0];
    this.height = 0.2;
    const gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
    if (!gl) throw new Error("this browser has no WebGL 2, which the 3D view needs");
    this.gl = gl;
    this.program = program(gl, VERTEX, FRAGMENT);
    this.places = Object.fromEntries(["projection", "view", "picture", "has_picture", "clay", "base"].map(
      (name) => [name, gl.getUniformLocation(this.program, name)]));
    this.resetView();
    this.#listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** Show what readGlb returned, in the pose at rest. */
  async show(face) {
    const pictures = await Promise.all(face.parts.map(({ picture }) => (picture ? createImageBitmap(picture) : null)));
    this.parts.forEach((part) => part.free());
    this.parts = face.parts.map((part, place) => new Part(this.gl, this.program, part, pictures[place]));
    const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
    for (const { positions } of face.parts) {
      for (let i = 0; i < positions.length; i++) {
        low[i % 3] = Math.min(low[i % 3], positions[i]);
        high[i % 3] = Math.max(high[i % 3], positions[i]);
      }
    }
    this.centre = low.map((value, axis) => (value + high[axis]) / 2);
    this.height = Math.max(high[1] - low[1], 0.8 * (high[0] - low[0]));
    this.weights = {};
    this.#morph();
  }

  /** Weights by the names of morph targets; those that are not named rest. */
  setWeights(weights) {
    this.weights = weights;
    this.#morph();
  }

  /** The bare shape in grey, or the skin. */
  setClay(clay) {
    this.clay = clay;
    this.draw();
  }

  resetView() {
    this.yaw = 0;
    this.pitch = 0;
    this.zoom = 1;
    this.shift = [0, 0];
    this.draw();
  }

  /** The middle of all vertices as they are now, for tests. */
  meanPosition() {
    const sum = [0, 0, 0];
    let count = 0;
    for (const { shape } of this.parts) {
      for (let i = 0; i < shape.length; i++) sum[i % 3] += shape[i];
      count += shape.length / 3;
    }
    return sum.map((value) => value / count);
  }

  #morph() {
    this.parts.forEach((part) => part.morph(this.weights));
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.#render();
    });
  }

  #render() {
    const { gl, canvas } = this;
    const density = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.max(1, Math.round(canvas.clientWidth * density));
    const height = Math.max(1, Math.round(canvas.clientHeight * density));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(this.program);
    const aspect = width / height;
    const extent = (1.12 * this.height) / Math.min(1, aspect * 1.1);
    const distance = extent / 2 / Math.tan(FIELD_OF_VIEW / 2) / this.zoom;
    const near = Math.max(distance - 3 * this.height, 0.02 * distance);
    gl.uniformMatrix4fv(this.places.projection, false, perspective(aspect, near, distance + 3 * this.height));
    gl.uniformMatrix4fv(this.places.view, false, orbit(this.yaw, this.pitch, distance, this.centre, this.shift));
    gl.uniform1i(this.places.clay, this.clay ? 1 : 0);
    for (const part of this.parts) part.draw(this.places);
  }

  #listen() {
    const { canvas } = this;
    const fingers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const step = [event.clientX - before[0], event.clientY - before[1]];
      const others = [...fingers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      if (others.length) {
        const gap = (place) => Math.hypot(place[0] - others[0][0], place[1] - others[0][1]);
        this.#zoomBy(gap([event.clientX, event.clientY]) / Math.max(gap(before), 1));
      } else if (event.shiftKey || event.buttons === 2) {
        const perPixel = (1.12 * this.height) / this.zoom / canvas.clientHeight;
        this.shift = [this.shift[0] + step[0] * perPixel, this.shift[1] - step[1] * perPixel];
      } else {
        this.turn(step[0] / 150, step[1] / 150);
      }
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      this.draw();
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => fingers.delete(event.pointerId));
    }
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.#zoomBy(Math.exp(-event.deltaY / 600));
    }, { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => this.resetView());
    canvas.addEventListener("keydown", (event) => {
      const turns = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
      if (turns[event.key]) this.turn(...turns[event.key]);
      else if (event.key === "+" || event.key === "-") this.#zoomBy(event.key === "+" ? 1.1 : 1 / 1.1);
      else return;
      event.preventDefault();
    });
  }

  turn(yaw, pitch) {
    this.yaw += yaw;
    this.pitch = Math.max(-1.5, Math.min(1.5, this.pitch + pitch));
    this.draw();
  }

  #zoomBy(factor) {
    this.zoom = Math.max(0.3, Math.min(12, this.zoom * factor));
    this.draw();
  }
}

class Part {
  constructor(gl, linked, { positions, triangles, colours, texture, targets, tint, picture }, image) {
    Object.assign(this, { gl, positions, triangles, targets, tint, hasPicture: Boolean(picture) });
    this.shape = Float32Array.from(positions);
    this.normals = new Float32Array(positions.length);
    this.welded = weld(positions);
    this.array = gl.createVertexArray();
    gl.bindVertexArray(this.array);
    this.buffers = {};
    const count = positions.length / 3;
    const white = colours ?? new Float32Array(3 * count).fill(1);
    this.#add(linked, "position", this.shape, 3, gl.DYNAMIC_DRAW);
    this.#add(linked, "normal", this.normals, 3, gl.DYNAMIC_DRAW);
    this.#add(linked, "colour", white, 3, gl.STATIC_DRAW);
    this.#add(linked, "texture_place", texture ?? new Float32Array(2 * count), 2, gl.STATIC_DRAW);
    this.buffers.triangles = gl.createBuffer();
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers.triangles);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, triangles, gl.STATIC_DRAW);
    gl.bindVertexArray(null);
    this.image = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.image);
    if (image) gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, image);
    else gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 1, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array([255, 255, 255, 255]));
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
  }

  #add(linked, name, values, width, usage) {
    const { gl } = this;
    const place = gl.getAttribLocation(linked, name);
    this.buffers[name] = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
    gl.bufferData(gl.ARRAY_BUFFER, values, usage);
    if (place < 0) return;
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, width, gl.FLOAT, false, 0, 0);
  }

  morph(weights) {
    const { gl, shape } = this;
    shape.set(this.positions);
    for (const { name, vertices, offsets } of this.targets) {
      const weight = weights[name] ?? 0;
      if (!weight) continue;
      for (let i = 0; i < vertices.length; i++) {
        const at = 3 * vertices[i];
        shape[at] += weight * offsets[3 * i];
        shape[at + 1] += weight * offsets[3 * i + 1];
        shape[at + 2] += weight * offsets[3 * i + 2];
      }
    }
    smoothNormals(shape, this.triangles, this.welded, this.normals);
    for (const [name, values] of [["position", shape], ["normal", this.normals]]) {
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
      gl.bufferSubData(gl.ARRAY_BUFFER, 0, values);
    }
  }

  draw(places) {
    const { gl } = this;
    gl.uniform1i(places.has_picture, this.hasPicture ? 1 : 0);
    gl.uniform3fv(places.base, this.tint);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.image);
    gl.uniform1i(places.picture, 0);
    gl.bindVertexArray(this.array);
    gl.drawElements(gl.TRIANGLES, this.triangles.length, gl.UNSIGNED_INT, 0);
    gl.bindVertexArray(null);
  }

  free() {
    const { gl } = this;
    Object.values(this.buffers).forEach((buffer) => gl.deleteBuffer(buffer));
    gl.deleteVertexArray(this.array);
    gl.deleteTexture(this.image);
  }
}

/** For each vertex the first one at its place: where a texture is cut open the surface still is one. */
function weld(positions) {
  const first = new Map();
  const welded = new Uint32Array(positions.length / 3);
  for (let i = 0; i < welded.length; i++) {
    const key = `${Math.round(positions[3 * i] * 1e7)} ${Math.round(positions[3 * i + 1] * 1e7)} ${Math.round(positions[3 * i + 2] * 1e7)}`;
    if (!first.has(key)) first.set(key, i);
    welded[i] = first.get(key);
  }
  return welded;
}

function smoothNormals(shape, triangles, welded, normals) {
  normals.fill(0);
  for (let i = 0; i < triangles.length; i += 3) {
    const a = 3 * triangles[i], b = 3 * triangles[i + 1], c = 3 * triangles[i + 2];
    const ux = shape[b] - shape[a], uy = shape[b + 1] - shape[a + 1], uz = shape[b + 2] - shape[a + 2];
    const vx = shape[c] - shape[a], vy = shape[c + 1] - shape[a + 1], vz = shape[c + 2] - shape[a + 2];
    const x = uy * vz - uz * vy, y = uz * vx - ux * vz, z = ux * vy - uy * vx;
    for (const corner of [triangles[i], triangles[i + 1], triangles[i + 2]]) {
      const at = 3 * welded[corner];
      normals[at] += x;
      normals[at + 1] += y;
      normals[at + 2] += z;
    }
  }
  for (let i = 0; i < welded.length; i++) {
    const at = 3 * welded[i];
    if (at !== 3 * i) normals.copyWithin(3 * i, at, at + 3);
  }
}

function perspective(aspect, near, far) {
  const scale = 1 / Math.tan(FIELD_OF_VIEW / 2);
  return new Float32Array([
    scale / aspect, 0, 0, 0, 0, scale, 0, 0, 0, 0, (far + near) / (near - far), -1, 0, 0, (2 * far * near) / (near - far), 0,
  ]);
}

/** Turn about the centre, then move it in front of the eye; columns first, as WebGL wants. */
function orbit(yaw, pitch, distance, centre, shift) {
  const [cy, sy, cx, sx] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
  const rows = [[cy, 0, sy], [sx * sy, cx, -sx * cy], [-cx * sy, sx, cx * cy]];
  const moved = rows.map((row) => -row.reduce((sum, value, axis) => sum + value * centre[axis], 0));
  return new Float32Array([
    rows[0][0], rows[1][0], rows[2][0], 0, rows[0][1], rows[1][1], rows[2][1], 0, rows[0][2], rows[1][2], rows[2][2], 0,
    moved[0] + shift[0], moved[1] + shift[1], moved[2] - distance, 1,
  ]);
}

function program(gl, vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  return made;
}
