// Starts what the files before this one define.

listenToList();
listenToAddress();
$("close").addEventListener("click", () => $("details").close());
charts.forEach(startChart);
tick();
