"use strict";
(async function () {
  const $ = (id) => document.getElementById(id);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
    const link = { j: 'a[rel="next"]', k: 'a[rel="prev"]' }[event.key];
    if (link && document.querySelector(link)) document.querySelector(link).click();
    if (event.key === "l" && $("show")) $("show").click();
  });
  if (!$("page-data")) return;
  const data = JSON.parse($("page-data").textContent);
  let paint = (opacity) => $("pictures").style.setProperty("--opacity", opacity);
  const repaint = () => paint($("show").checked ? Number($("opacity").value) : 0);
  $("show").addEventListener("change", repaint);
  $("opacity").addEventListener("input", () => { $("show").checked = true; repaint(); });

  async function unpacked(id) {
    const bytes = Uint8Array.from(atob($(id).textContent.trim()), (character) => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  }

  const pictures = (why) => { document.body.dataset.viewer = "pictures"; $("where").textContent = why; };
  const probe = document.createElement("canvas").getContext("webgl2");
  if (!probe || typeof DecompressionStream === "undefined") return pictures("no WebGL 2 in this browser");
  probe.getExtension("WEBGL_lose_context")?.loseContext();

  try {
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(await unpacked("niivue-code"));
    document.head.append(script);
    // Shown before NiiVue measures it; taken back should it fail.
    $("stage").hidden = false;
    $("pictures").hidden = true;
    await view();
  } catch (error) {
    $("stage").hidden = true;
    $("pictures").hidden = false;
    pictures("the viewer could not start (" + error.message + ")");
  }

  async function view() {
    const planes = ["sagittal", "coronal", "axial"];
    const nv = new niivue.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [1, 0.75, 0, 0.8], crosshairWidth: 1, dragAndDropEnabled: false,
      loadingText: "", logLevel: "error", multiplanarShowRender: niivue.SHOW_RENDER.NEVER, show3Dcrosshair: true,
      isRadiologicalConvention: false,
    });
    await nv.attachToCanvas($("canvas"));
    await nv.loadFromArrayBuffer(await unpacked("scan-file"), "scan.nii");
    await nv.loadFromArrayBuffer(await unpacked("labels-file"), "labels.nii");
    Object.assign(nv.volumes[0], { cal_min: 0, cal_max: 255 });
    const column = (channel) => [0, ...data.colors.map((color) => color[channel])];
    nv.volumes[1].setColormapLabel({
      R: column(0), G: column(1), B: column(2), A: [0, ...data.colors.map(() => 255)], I: [...Array(data.colors.length + 1).keys()],
      labels: ["", ...data.names],
    });
    nv.opts.showLegend = false;
    paint = (opacity) => { nv.setOpacity(1, opacity); };
    nv.onLocationChange = (location) => {
      planes.forEach((plane, axis) => { $("slice-" + plane).value = nv.scene.crosshairPos[axis]; });
      const index = Math.round(location.values[1] ? location.values[1].value : 0);
      const place = Array.from(location.mm).slice(0, 3).map((mm) => mm.toFixed(0)).join(", ");
      $("where").textContent = (index > 0 ? data.names[index - 1] : "no label") + " at " + place + " mm";
    };
    const goto = (fractions) => {
      nv.scene.crosshairPos = fractions;
      nv.createOnLocationChange();
      nv.drawScene();
    };
    planes.forEach((plane, axis) => $("slice-" + plane).addEventListener("input", (event) => {
      const place = [...nv.scene.crosshairPos];
      place[axis] = Number(event.target.value);
      goto(place);
    }));
    $("outline").addEventListener("change", (event) => nv.setAtlasOutline(event.target.checked ? 1 : 0));
    $("white").addEventListener("input", (event) => {
      nv.volumes[0].cal_max = 295 - Number(event.target.value);
      nv.updateGLVolume();
    });
    const views = { all: "MULTIPLANAR", axial: "AXIAL", coronal: "CORONAL", sagittal: "SAGITTAL", "3D": "RENDER" };
    $("views").addEventListener("click", (event) => {
      const name = event.target.dataset.view;
      if (!name) return;
      nv.setSliceType(niivue.SLICE_TYPE[views[name]]);
      for (const button of $("views").children) button.setAttribute("aria-pressed", String(button === event.target));
    });
    for (const row of document.querySelectorAll("#volumes tr.pick")) {
      const go = () => goto(data.centres[Number(row.dataset.index)]);
      row.addEventListener("click", () => { go(); $("canvas").scrollIntoView({ block: "nearest" }); });
      row.addEventListener("keydown", (event) => { if (event.key === "Enter") go(); });
    }
    for (const part of document.querySelectorAll(".gl")) part.hidden = false;
    $("no-webgl").hidden = true;
    nv.updateGLVolume();
    repaint();
    goto(data.start);
    document.body.dataset.viewer = "niivue";
  }
})();
