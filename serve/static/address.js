(id) => {
  // The case that is open stands in the page's address. On a narrow screen the list then makes room for it.
  window.history.replaceState(null, "", id ? `#${id}` : window.location.pathname);
  if (id && window.innerWidth <= 768) document.querySelector(".sidebar.open .toggle-button")?.click();
}
