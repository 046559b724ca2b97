// Runs in a worker, behind dagre: lays out the boxes of one container.

onmessage = ({ data }) => {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({
    rankdir: "TB",
    nodesep: 22,
    ranksep: 38,
    edgesep: 12,
    ranker: data.edges.length > 200 ? "longest-path" : "network-simplex",
  });
  graph.setDefaultEdgeLabel(() => ({}));
  data.sizes.forEach(([width, height], i) => graph.setNode(String(i), { width, height }));
  for (const [from, to, weight] of data.edges) graph.setEdge(String(from), String(to), { weight, minlen: 1 });
  dagre.layout(graph);
  const places = data.sizes.map(([width, height], i) => {
    const { x, y } = graph.node(String(i));
    return [x - width / 2, y - height / 2];
  });
  const lines = data.edges.map(([from, to]) => graph.edge(String(from), String(to)).points.map(({ x, y }) => [x, y]));
  postMessage({ places, lines });
};
