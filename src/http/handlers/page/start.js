// Starts what the files before this one define.

listenToList();
$("close").addEventListener("click", () => $("details").close());
charts.forEach(startChart);
tick();
